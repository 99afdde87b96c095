"""Fusion Tuning as a method: its stages, its masks, what it remembers, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

for library in ("transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from safetensors.torch import save_file  # noqa: E402

import avfast  # noqa: E402
from avfast import _library  # noqa: E402
from avfast.errors import ConfigError  # noqa: E402
from avfast.methods.fusion_tuning import SILENCE, FusionTuning, FusionTuningConfig  # noqa: E402
from avfast.nn.adaptive_batch_norm import AdaptiveBatchNorm2d  # noqa: E402
from avfast.nn.bn_layers import batchnorm_layers  # noqa: E402
from avfast.ops._counter import content_key  # noqa: E402

CLASSES, IDS = 4, [f"clip {i}" for i in range(8)]


def batch(rows=slice(None)) -> dict:
    generator = torch.Generator().manual_seed(0)
    made = {
        "spectrogram": torch.randn(8, 1, 48, 32, generator=generator) + 3,
        "frames": torch.randn(8, 2, 3, 32, 32, generator=generator) + 3,
        "label": torch.arange(8) % CLASSES,
        "index": torch.arange(8),
        "key": torch.tensor([content_key(id) for id in IDS]),
    }
    return {name: x[rows].clone() for name, x in made.items()}


def build(seed=0, **options) -> FusionTuning:
    torch.manual_seed(seed)
    given = {"classes": CLASSES, "size": 32, "frames": 2, "duration": 0.48, **options}
    return FusionTuning(FusionTuningConfig(**given))


def confidence_files(folder, audio, video) -> dict[str, str]:
    paths = {}
    for name, values in (("audio_confidence", audio), ("visual_confidence", video)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"confidence": dict(zip(IDS, values, strict=True))}))
        paths[name] = str(path)
    return paths


@pytest.mark.parametrize("stage", ["audio", "video"])
def test_a_stage_alone_is_a_classifier_that_notes_its_confidence(stage):
    method = build(stage=stage)
    output = method(batch())
    features = method.features(batch())
    assert set(features) == {stage} and hasattr(method, "audio") == (stage == "audio")
    logits = method.classify(features)[stage]
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch()["label"]))
    sure = logits.softmax(1).gather(1, batch()["label"][:, None])[:, 0].double()
    means = method.confidences.means()
    torch.testing.assert_close(
        torch.tensor([means[k] for k in batch()["key"].tolist()], dtype=torch.float64), sure.detach()
    )
    method.validation_step(batch(slice(0, 2)))
    assert method.confidences.means() == means, "validation is not training"
    twin = build(seed=1, stage=stage)
    twin.load_state_dict(method.state_dict())
    assert twin.confidences.means() == means


def test_the_joint_loss_is_that_of_plain_torch_and_so_is_its_curve():
    """Training with the fused head follows the loss of a concatenation and a linear layer; in float64, because batch
    norms of eight samples make much of a rounding."""
    fused, plain = build().double(), build().double()
    curves = []
    for method in (fused, plain):
        optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
        losses = []
        for _ in range(8):
            given = {name: x.double() if x.is_floating_point() else x for name, x in batch().items()}
            if method is fused:
                loss = method(given).loss
            else:
                found = method.features(given)
                joined = torch.cat([found["audio"], found["video"]], 1)
                loss = F.cross_entropy(F.linear(joined, method.head.weight, method.head.bias), given["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.7 * curves[0][0]
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-7, atol=1e-9)


def test_kernels_follow_the_reference_with_abri_and_masks(tmp_path):
    """The whole of it, step by step: masks by confidence, ABRi in both encoders, the fused head."""
    files = confidence_files(tmp_path, [1.0] * 4 + [0.6] * 4, [0.5] * 4 + [0.9] * 4)
    options = {"masks": "conf", "rho": 1.0, "eta": 2.0, "audio_init": "abri_channel", "visual_init": "abri_scalar"}
    curves = {}
    for backend in ("torch", "cpp"):
        if backend == "cpp" and not _library.native:
            pytest.skip("no compiled library")
        method = build(**options, **files).double()
        optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
        curves[backend] = []
        with avfast.use_backend(backend):
            for step in range(6):
                given = {name: x.double() if x.is_floating_point() else x for name, x in batch().items()}
                output = method(given)
                assert output.metrics["masked_audio"] > 0 and output.metrics["masked_video"] > 0
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
                method.after_optimizer_step(step + 1)
                curves[backend].append(output.loss.item())
    assert curves["cpp"][-1] < curves["cpp"][0]
    torch.testing.assert_close(torch.tensor(curves["cpp"]), torch.tensor(curves["torch"]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("rho", "audio", "video"), [((1.0, 0.0), True, False), ((0.0, 1.0), False, True)])
def test_every_stream_has_its_own_slope_and_cap(tmp_path, rho, audio, video):
    files = confidence_files(tmp_path, [1.0] * 4 + [0.6] * 4, [0.5] * 4 + [0.9] * 4)
    ratios = build(masks="conf", rho=rho, eta=(2.0, 3.0), **files)._mask(batch())
    assert (ratios["audio"] > 0, ratios["video"] > 0) == (audio, video)


def test_the_joint_stage_reports_what_each_modality_says():
    method = build()
    output = method(batch())
    said = method.classify(output.embeddings)
    assert set(said) == {"joint", "audio", "video", "nothing"}
    assert torch.equal(said["nothing"], method.head.bias.expand(8, -1))
    torch.testing.assert_close(said["audio"] + said["video"] - said["nothing"], said["joint"], rtol=1e-4, atol=1e-5)
    for name in ("joint", "audio", "video"):
        want = (said[name].argmax(1) == batch()["label"]).float().mean()
        assert output.metrics[f"accuracy_{name}"] == want
    output.loss.backward()
    assert (method.gradient_norms > 0).all()
    share = method(batch()).metrics["audio_gradient_share"]
    torch.testing.assert_close(share, method.gradient_norms[0] / method.gradient_norms.sum())


@pytest.mark.parametrize("masks", ["conf", "mean"])
def test_masks_hide_patches_of_the_surer_stream(tmp_path, masks):
    audio, video = [1.0] * 4 + [0.6] * 4, [0.5] * 4 + [0.9] * 4
    method = build(masks=masks, rho=1.0, eta=2.0, audio_patch=(16, 8), visual_patch=8,
                   **confidence_files(tmp_path, audio, video))  # fmt: skip
    given = batch()
    ratios = method._mask(given)
    hidden_a = (given["spectrogram"] == 0).flatten(1).float().mean(1)
    hidden_v = (given["frames"] == 0).flatten(1).float().mean(1)
    if masks == "conf":
        assert (hidden_a[:4] > 0.4).all() and (hidden_a[4:] == 0).all()
        assert (hidden_v[:4] == 0).all() and (hidden_v[4:] > 0.3).all()
        patches = 3 * 4
        want = torch.floor(patches * torch.tanh(torch.tensor(2.0 * 0.5))) / patches
        torch.testing.assert_close(hidden_a[:4], want.expand(4))
    else:
        assert (hidden_a == hidden_a[0]).all() and (hidden_v == hidden_v[0]).all() and hidden_a[0] > 0
    assert set(ratios) == {"audio", "video"}


def test_masks_depend_on_clip_and_step_and_nothing_else(tmp_path):
    files = confidence_files(tmp_path, [1.0] * 8, [0.5] * 8)
    method = build(masks="conf", rho=1.0, **files)

    def masked(rows, step=0):
        method.step = step
        given = batch(rows)
        method._mask(given)
        return given["spectrogram"]

    whole = masked(slice(None))
    order = [5, 1, 7]
    assert torch.equal(masked(order), whole[order])
    assert not torch.equal(masked(slice(None), step=1), whole)
    method.eval()
    given = batch()
    method.validation_step(given)
    assert torch.equal(given["spectrogram"], batch()["spectrogram"]), "nothing is masked in evaluation"


@pytest.mark.parametrize("spectrogram", ["ks", "esc50", "cavmae"])
def test_spec_augment_hides_what_silence_is_in_training_alone(spectrogram):
    from avfast.data.frontends import KaldiFbank

    shift, scale = KaldiFbank.PRESETS[spectrogram]
    assert SILENCE[spectrogram] == pytest.approx(-shift / scale)
    method = build(stage="audio", spec_augment=(20, 30), spectrogram=spectrogram)
    given, kept = batch(), batch()
    method._augment(given)
    hidden = given["spectrogram"] != kept["spectrogram"]
    assert hidden.any() and not hidden.all()
    torch.testing.assert_close(given["spectrogram"][hidden], torch.tensor(SILENCE[spectrogram]).expand(hidden.sum()))
    plain = build(stage="audio", spectrogram=spectrogram)
    assert method.eval().validation_step(batch()).loss == plain.eval().validation_step(batch()).loss
    assert build(stage="audio", repeats=2, duration=0.48).inputs.frontend_options["frames"] == 96


def test_encoders_of_stage_one_start_the_joint_stage(tmp_path):
    stage = build(stage="audio", audio_init="abri_channel")
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    for _ in range(3):
        stage(batch()).loss.backward()
        optimizer.step()
    exported = stage.exports()
    assert set(exported) == {"audio", "audio_unfolded", "head"}
    (tmp_path / "unfolded").mkdir()
    save_file(exported["audio_unfolded"].state_dict(), tmp_path / "unfolded" / "model.safetensors")
    joint = build(seed=1, audio_init="abri_channel", audio_weights=str(tmp_path / "unfolded"))
    stage.eval(), joint.eval()
    want = stage.features(batch())["audio"]
    assert torch.equal(joint.features(batch())["audio"], want)
    folded = exported["audio"].eval()(batch()["spectrogram"]).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(folded, want, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, AdaptiveBatchNorm2d) for m in exported["audio"].modules())
    with pytest.raises(ConfigError, match="audio_weights.*does not fit resnet-tiny with audio_init=naive"):
        build(audio_weights=str(tmp_path / "unfolded"))


def test_an_encoder_starts_from_the_other_modality(tmp_path):
    video = build(stage="video")
    save_file(video.exports()["visual"].state_dict(), tmp_path / "visual.safetensors")
    method = build(seed=1, stage="audio", audio_from=str(tmp_path / "visual.safetensors"), audio_init="abri_scalar")
    stem = method.audio.backbone.embedder.embedder.convolution.weight
    other = video.visual.backbone.embedder.embedder.convolution.weight
    assert torch.equal(stem, other.sum(1, keepdim=True))
    assert any("abri_scalar" in note and "adapted" in note for note in method.notes())
    with pytest.raises(ConfigError, match="audio_from"):
        build(stage="audio", audio="resnet-small", audio_from=str(tmp_path / "visual.safetensors"))


def test_sparsity_makes_dead_channels():
    method = build(stage="audio", sparsity=0.02)
    with torch.no_grad():
        for step in range(60):
            method.after_optimizer_step(step + 1)
    assert all((layer.weight == 0).all() and (layer.bias == 0).all() for _, layer in batchnorm_layers(method))


def test_alpha_does_not_decay():
    method = build(audio_init="abri_channel", visual_init="abri_scalar")
    groups = method.param_groups(0.1)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    alphas = [m.alpha for m in method.modules() if isinstance(m, AdaptiveBatchNorm2d)]
    assert alphas and not any(id(alpha) in decayed for alpha in alphas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"method.threshold: expected a number in \[0, 1\]"),
        ({"rho": float("nan")}, r"method.rho: expected a number in \[0, 1\]"),
        ({"eta": -1.0}, "method.eta"),
        ({"eta": float("nan")}, "method.eta"),
        ({"alpha": float("inf")}, "method.alpha"),
        ({"rho": (0.5, 1.5)}, r"method.rho: expected a number in \[0, 1\], or one for audio and one for video"),
        ({"eta": (1.0,)}, "method.eta: expected a number from 0 on, or one for audio"),
        ({"spec_augment": (129, 0)}, "method.spec_augment: expected up to 128 mel bands and 48 frames"),
        ({"spec_augment": (0, 49)}, "method.spec_augment"),
        ({"repeats": 0}, "method.repeats: expected at least 1"),
        ({"fps": 4.0}, "method.fps: expected 0, or at least 2 pictures"),
        ({"fps": -1.0}, "method.fps"),
        ({"duration": 0.0}, "method.duration"),
        ({"sparsity": -1e-3}, "method.sparsity: expected a number from 0 on"),
        ({"size": 8}, "method.size: expected at least 32"),
        ({"audio_patch": (0, 8)}, "method.audio_patch"),
        ({"masks": "conf"}, "method.audio_confidence: masks=conf needs the file that stage 1 wrote"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_inputs_ask_for_what_the_stage_needs():
    paper = dataclasses.replace(FusionTuningConfig(), spectrogram_frames=1024, duration=10.0)
    assert FusionTuning(paper).inputs.frontend_options["frames"] == 1024
    assert build(stage="video").inputs.frontend is None and build(stage="audio").inputs.frames == 0
    assert not build(stage="video").inputs.sound and build(stage="audio").inputs.sound
    wanted = build(sampling="segments", fps=8.0).inputs
    assert (wanted.sampling, wanted.fps) == ("segments", 8.0)
    assert FusionTuning.presets["paper"]["method.sampling"] == "segments"
    assert build(duration=2.0).inputs.frontend_options["frames"] == 208
