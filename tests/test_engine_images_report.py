"""What an image recipe's report shows: scores with their reasons, and pictures."""

from __future__ import annotations

from types import SimpleNamespace

import densecl_fixtures as fixtures
import pytest
import torch
from engine_fixtures import IMAGES, scenes_split

for library in ("PIL", "av", "sklearn", "kornia", "accelerate", "jsonargparse", "transformers"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.data.image_folder import ImageDataset  # noqa: E402
from avfast.engine import assess_images, figures, figures_images  # noqa: E402
from avfast.engine.assess import calibrate_batchnorm  # noqa: E402
from avfast.engine.image_inputs import ImagePipeline  # noqa: E402
from avfast.engine.sources import evaluation_loader  # noqa: E402
from avfast.evaluate.segmentation import IGNORE  # noqa: E402

# ------------------------------------------------------------------------------------------- scores


class Knowing(torch.nn.Module):
    """A method whose map is the truth, one channel per class, and whose batches must come without views."""

    def dense_features(self, batch):
        assert "view_q" not in batch
        mask = batch["mask"].long()
        return torch.nn.functional.one_hot(mask.masked_fill(mask == IGNORE, 0), 11).permute(0, 3, 1, 2).float()


def loaders(**splits):
    sources = {name: scenes_split(name) for name in ("train", "val", "test")} | splits
    return {name: None if data is None else evaluation_loader(data, 7) for name, data in sources.items()}


def assess(method=None, *, labelled=True, mask_classes=11, **splits):
    method = method or fixtures.method()
    return assess_images.assess_images(
        method, ImagePipeline(IMAGES), loaders(**splits), labelled=labelled, mask_classes=mask_classes, context="here"
    )


def test_maps_and_masks_belong_together():
    scores, errors = assess(Knowing())
    assert set(scores) == {"mIoU", "pixel accuracy", "kNN image", "linear probe image"} and errors == {}
    assert scores["mIoU"].value > 0.9 > 2 * scores["mIoU"].chance and scores["mIoU"].n == 8
    assert all(score.protocol.endswith("here") for score in scores.values())


def test_assessment_leaves_the_mode_and_the_statistics_alone():
    method = fixtures.method()
    before = {k: v.clone() for k, v in method.state_dict().items() if isinstance(v, torch.Tensor)}
    assess(method)
    assert method.training and all(torch.equal(v, method.state_dict()[k]) for k, v in before.items())


class Torn(ImageDataset):
    """Samples of a split whose first cannot be read, or none of which has a mask."""

    def __init__(self, split, *, broken=(), masks=True):
        super().__init__(scenes_split(split).source, size=36, seed=0, train=False, on_error="skip", mask_size=32)
        self.broken, self.has_masks = broken, masks

    def __getitem__(self, key):
        if key[1] in self.broken:
            return {"errors": [{"path": f"{key[1]}.png", "cause": "broken", "detail": "is broken"}]}
        return super().__getitem__(key)


@pytest.mark.parametrize("labelled", [True, False])
def test_pictures_that_cannot_be_read_are_reported_with_and_without_labels(labelled):
    scores, errors = assess(labelled=labelled, test=Torn("test", broken=(0,)), val=Torn("val", broken=(1,)))
    assert errors == {"0.png: broken": 1, "1.png: broken": 1} and scores["mIoU"].n == 7
    for name in ("kNN image", "linear probe image"):
        assert (scores[name].value is None) == (not labelled)
        assert labelled or scores[name].reason == "needs labels"


def test_a_missing_score_says_its_reason(monkeypatch):
    def reason(**options):
        return assess(**options)[0]["mIoU"].reason

    assert reason(test=None) == "no test split"
    assert reason(val=None) == "no validation split to choose the regularisation on"
    assert reason(test=Torn("test", masks=False)) == "the data have no masks"
    assert reason(mask_classes=5) == "a mask holds the class number 10, and the manifest lists 5 classes"
    monkeypatch.setattr(assess_images, "MOST_MAP_BYTES", 1000)
    assert reason().startswith("the feature maps of a split would take 0.0 GiB")


def test_a_split_without_a_readable_picture_gives_advice_for_pictures():
    with pytest.raises(Exception, match=r"no image of a split could be read; .* 0.png is broken; remove") as caught:
        assess(test=Torn("test", broken=range(8)))
    assert "media-scan" not in str(caught.value)


def test_untrained_statistics_are_those_of_plain_pictures(monkeypatch):
    pipeline, method = ImagePipeline(IMAGES), fixtures.method(group_size=0)
    monkeypatch.setattr(pipeline, "views", None)  # drawing a view would fail
    loader = evaluation_loader(scenes_split(), 28)
    twin = calibrate_batchnorm(method, pipeline, loader)
    conv, norm = twin.encoder.backbone[:2]
    with torch.no_grad():
        mean = conv(pipeline.plain(next(iter(loader)))["image"]).mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean)
    assert not twin.training and norm.momentum == 0.1
    assert torch.equal(method.encoder.backbone[1].running_mean, torch.zeros(8))


# ------------------------------------------------------------------------------------------- pictures


def matches(keep: bool, truth: torch.Tensor | None):
    index = torch.arange(16).expand(3, 16)
    known = None if truth is None else SimpleNamespace(index=truth.expand(3, 16))
    return SimpleNamespace(
        index=index, similarity=torch.rand(3, 16), keep=torch.full((3, 16), keep), grid=(4, 4), truth=known
    )


def coloured(path) -> tuple[float, float]:
    """Shares of a picture that are clearly greener, and redder, than grey."""
    image = pytest.importorskip("PIL.Image").open(path).convert("RGB")
    r, g, b = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3).float().unbind(1)
    return ((g - torch.maximum(r, b)) > 30).float().mean().item(), (
        (r - torch.maximum(g, b)) > 60
    ).float().mean().item()


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "none kept"])
def test_correspondences_are_lines_in_the_colour_of_the_truth(tmp_path, keep):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    views = torch.zeros(3, 3, 32, 32)  # grey: every colour is a line
    found = {}
    for name, truth in (("right", torch.arange(16)), ("wrong", torch.arange(16).flip(0)), ("unknown", None)):
        path = figures_images.correspondences(views, views, matches(keep, truth)).draw(tmp_path / f"{name}.png")
        found[name] = coloured(path)
    assert found["right"][0] > 1e-3 and found["right"][1] == 0
    assert found["wrong"][1] > 1e-3 and found["wrong"][0] == 0
    assert found["unknown"] == pytest.approx(found["right"], rel=0.3)


def test_a_picture_without_a_good_pair_says_so():
    assert figures_images._caption(True, [True, False], known=True) == "2 pairs, 1 at the same place"
    text = figures_images._caption(False, [False] * 5, known=False)
    assert text == "no pair is similar enough both ways; dashed: the 5 most similar cells"


def test_titles_of_the_curves_fit_and_legends_hide_no_line(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    values = dict.fromkeys(figures.WATCHED, 0.4) | {"dense_neg_sim": -0.6}
    train = {
        "kind": "train",
        "loss": 2.0,
        "data_s": 0.1,
        "compute_s": 0.2,
        "collapse": {"image": {"effective_rank": 3}},
    }
    rows = [{**train, **values, "step": step} for step in (1, 2)] + [{"kind": "val", "step": 2, "loss": 1.5}]
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure) or path)
    figures.curves(tmp_path / "c.png", rows, rows, {"chance": 2.8})
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = kept[0]
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        box = axis.title.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    watched = figure.axes[1]
    top = watched.get_legend().get_window_extent().transformed(watched.transData.inverted()).y1
    assert len(watched.lines) == len(figures.WATCHED) and top < -0.6
