"""Sound2Scene as a method: what each stage trains, the alignment loss against its formula, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import avfast
from avfast import backends

for library in ("transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.errors import ConfigError  # noqa: E402
from avfast.methods import get_method  # noqa: E402
from avfast.methods.base import ImageInputs, Inputs  # noqa: E402
from avfast.methods.sound2scene import Sound2Scene, Sound2SceneConfig  # noqa: E402
from avfast.nn.scene_targets import SceneTargets  # noqa: E402

CLIPS, FRAMES = 12, 4

pytestmark = pytest.mark.usefixtures("one_thread")


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "spectrogram": torch.randn(CLIPS, 1, 257, 60, generator=generator),
        "frames": torch.randn(CLIPS, 1, 3, 32, 32, generator=generator),
        "image": torch.randn(CLIPS, 3, 32, 32, generator=generator),
        "seed": torch.arange(CLIPS),
        "label": torch.arange(CLIPS) % 3,
        "index": torch.arange(CLIPS),
        "key": torch.arange(100, 100 + CLIPS),
    }


def build(seed=0, **options) -> Sound2Scene:
    torch.manual_seed(seed)
    given = {"visual": "resnet-tiny", "visual_size": 32, "duration": 0.6, **options}
    return Sound2Scene.build(Sound2SceneConfig(**given))


@pytest.fixture
def targets(tmp_path) -> str:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(CLIPS, FRAMES, 128, generator=generator).relu()
    scores = torch.randn(CLIPS, FRAMES, generator=generator)
    SceneTargets(torch.arange(100, 100 + CLIPS), features, scores).save(tmp_path / "targets.safetensors")
    return str(tmp_path / "targets.safetensors")


def gradients(method) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def test_stages_and_their_data():
    assert get_method("sound2scene") is Sound2Scene
    assert list(Sound2Scene.stages) == ["localiser", "generator", "audio"]
    for stage in ("localiser", "audio"):
        inputs = build(stage=stage).inputs
        assert type(inputs) is Inputs and inputs.frontend == "log-psd"
        assert inputs.frontend_options == {"preset": "sound2scene", "eps": 1e-7, "seconds": 0.6}
    assert type(build(stage="generator").inputs) is ImageInputs


def test_alignment_is_the_published_loss_and_trains_the_audio_side_only(targets):
    method = build(stage="audio", targets=targets, temperature=1.0).train()
    output = method(batch())
    z = method.embed(batch())
    table = SceneTargets.read(targets)
    best = table.scores.argmax(dim=1)
    assert torch.equal(z["video"], table.features[torch.arange(CLIPS), best]), "the frame that goes best with the sound"
    assert (z["audio"] >= 0).all(), "the published head ends in a ReLU"
    u, v = (F.normalize(x.double(), dim=1) for x in (z["audio"], z["video"]))
    d = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.arange(CLIPS)
    published = (F.cross_entropy(-d, own) + F.cross_entropy(-d.T, own)) / 2
    torch.testing.assert_close(output.loss.double(), published, atol=1e-5, rtol=1e-5)
    output.loss.backward()
    assert set(gradients(method)) == {n for n, _ in method.named_parameters()}
    assert not any(n.startswith("visual") for n, _ in method.named_parameters())
    bounds = method.loss_bounds(64)
    assert bounds["floor"] == pytest.approx(2.79, abs=0.01) and bounds["chance"] == pytest.approx(4.16, abs=0.01)


def test_training_with_the_kernel_follows_the_reference(targets):
    """The same weights and batches: the two loss curves may differ by rounding alone."""
    start, curves = build(stage="audio", targets=targets, temperature=1.0), {}
    if backends.explain("info_nce").chosen == "torch":
        pytest.skip("the compiled library is not here: there is nothing to compare")
    for backend in ("torch", "auto"):
        method = copy.deepcopy(start).train()
        optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
        with avfast.use_backend(backend):
            losses = []
            for _ in range(12):
                loss = method(batch()).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        curves[backend] = losses
    assert curves["torch"][-1] < curves["torch"][0] - 0.05, "it learns"
    assert curves["auto"] == pytest.approx(curves["torch"], abs=2e-3)


@pytest.mark.parametrize("rule", ["top10", "random"])
def test_a_random_frame_is_another_at_every_step_and_fixed_in_evaluation(targets, rule):
    method = build(stage="audio", targets=targets, frame_rule=rule).train()
    drawn = []
    for step in range(6):
        drawn.append(method.features(batch())["video"])
        method.after_optimizer_step(step + 1)
    assert len({x.sum().item() for x in drawn}) > 2
    method.eval()
    assert torch.equal(method.features(batch())["video"], method.features(batch())["video"])
    method.set_extra_state({"step": 0})
    assert torch.equal(method.train().features(batch())["video"], drawn[0]), "a function of step and content"


def test_the_generator_stage_trains_both_nets_and_not_the_encoder():
    method = build(stage="generator").train()
    before = {n: p.clone() for n, p in method.visual.state_dict().items()}
    groups = method.param_groups(0.1)
    assert all(g["betas"] == (0.0, 0.999) and g["weight_decay"] == 0 for g in groups)
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    output = method(batch())
    output.loss.backward()
    assert {n.split(".")[0] for n in gradients(method)} == {"generator", "discriminator"}
    assert set(output.metrics) == {"d_loss", "g_loss"} and output.embeddings["drawn"].shape[0] == CLIPS
    optimizer.step()
    average = [p.clone() for p in method.average.parameters()]
    method.after_optimizer_step(1)
    assert any(not torch.equal(a, b) for a, b in zip(average, method.average.parameters(), strict=True))
    assert all(torch.equal(value, method.visual.state_dict()[n]) for n, value in before.items())


def test_validation_of_the_generator_repeats_and_reads_consistency():
    method = build(stage="generator").eval()
    one, two = method.validation_step(batch()), method.validation_step(batch())
    assert one.loss == two.loss and 0 <= one.loss <= 2
    torch.testing.assert_close(one.loss, 1 - one.metrics["consistency"])


def test_half_of_the_real_pictures_are_mirrored_and_in_range():
    method = build(stage="generator").train()
    real, _ = method._pair(batch())
    plain, _ = build(stage="generator", flip=False).train()._pair(batch())
    mirrored = torch.tensor([torch.equal(r, p.flip(-1)) for r, p in zip(real, plain, strict=True)])
    kept = torch.tensor([torch.equal(r, p) for r, p in zip(real, plain, strict=True)])
    assert mirrored.sum() == CLIPS // 2 and (mirrored ^ kept).all()
    assert real.shape == (CLIPS, 3, 32, 32) and real.abs().max() <= 1


def test_the_localiser_learns_which_place_is_heard():
    method = build(stage="localiser").train()
    output = method(batch())
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert 0 < output.loss < 2 * method.loss_bounds(CLIPS)["chance"]
    embedded = method.eval().validation_step(batch()).embeddings
    assert {name: z.shape for name, z in embedded.items()} == {"audio": (CLIPS, 64), "video": (CLIPS, 64)}


def test_exports_of_all_stages(targets):
    assert set(build(stage="localiser").exports()) == {"visual", "audio"}
    drawn = build(stage="generator").exports()
    assert set(drawn) == {"generator", "visual_encoder"}
    assert not any("_u" in name for name in drawn["generator"].state_dict()), "spectral norms are folded"
    assert set(build(stage="audio", targets=targets).exports()) == {"audio_encoder", "audio_head"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a positive number"),
        ({"eps": float("nan")}, "method.eps: expected a positive number"),
        ({"ema": 1.0}, "method.ema: expected at least 0 and below 1"),
        ({"visual_size": 8}, "method.visual_size: expected at least 16"),
        ({"stage": "generator", "generator": "icgan-128"}, "'icgan-128' has no opponent to train with here"),
        ({"generator": "biggan"}, "method.generator: expected one of scene-32, scene-64, icgan-128, got 'biggan'"),
        ({"generator_weights": "/no/such.pth"}, "method.generator_weights: '/no/such.pth': no such file"),
        ({"stage": "audio", "targets": "/no/such/file"}, "cannot be read"),
        ({"visual": "resnet-huge"}, "neither a preset"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_the_audio_stage_says_that_it_needs_targets():
    with pytest.raises(ConfigError, match="method.targets: the audio stage needs the features of the frames"):
        build(stage="audio")(batch())
    example = build(stage="audio").example_step(batch())
    assert example.loss.requires_grad, "a plan can be made before there are targets"


def test_clips_of_other_data_are_refused(targets):
    method = build(stage="audio", targets=targets)
    with pytest.raises(ConfigError, match="12 of 12 clips are not among the 12 of the table"):
        method({**batch(), "key": torch.arange(CLIPS)})


def test_the_published_audio_encoder_has_its_size():
    method = build(stage="audio", visual="resnet50", audio="resnet18")
    assert method.head.out_features == 2048
    assert sum(p.numel() for p in method.parameters()) == 12_220_864, "Sound2Scene, spec of the released network"


# Checkpoints of image encoders as they are published.


def published(prefix="", **more) -> dict[str, torch.Tensor]:
    """Weights of a ResNet-18 by torchvision's names, drawn at random."""
    from avfast.encoders import build_encoder
    from avfast.nn.resnet_names import to_transformers

    torch.manual_seed(5)
    own = build_encoder("resnet18", in_channels=3).backbone.state_dict()
    names = ["conv1.weight", *(f"bn1.{leaf}" for leaf in LEAVES)]
    for stage in range(1, 5):
        for block in range(2):
            where = f"layer{stage}.{block}"
            for number in (1, 2):
                names += [f"{where}.conv{number}.weight", *(f"{where}.bn{number}.{leaf}" for leaf in LEAVES)]
            if stage > 1 and block == 0:
                names += [f"{where}.downsample.0.weight", *(f"{where}.downsample.1.{leaf}" for leaf in LEAVES)]
    values = {prefix + name: torch.randn_like(own[to_transformers(name)].float()) for name in names}
    return {**values, **more}


LEAVES = ("weight", "bias", "running_mean", "running_var")
SWAV = {"module.projection_head.0.weight": torch.zeros(2, 2), "module.prototypes.weight": torch.zeros(3, 2)}
MOCO = {"module.encoder_k.conv1.weight": torch.zeros(1), "module.queue": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("prefix", "more", "wrap"),
    [("", {"fc.weight": torch.zeros(2, 2)}, None), ("module.", SWAV, None), ("module.encoder_q.", MOCO, "state_dict")],
    ids=["torchvision", "SwAV", "MoCo"],
)
def test_published_checkpoints_fill_the_image_encoder(tmp_path, prefix, more, wrap):
    weights = published(prefix, **more)
    torch.save({wrap: weights} if wrap else weights, tmp_path / "w.pth")
    encoder = build(stage="audio", visual="resnet18", visual_weights=str(tmp_path / "w.pth")).image_encoder()
    assert encoder.pretrained
    own = encoder.backbone.state_dict()
    assert torch.equal(own["embedder.embedder.convolution.weight"], weights[f"{prefix}conv1.weight"])
    assert torch.equal(
        own["encoder.stages.3.layers.1.layer.1.normalization.running_var"], weights[f"{prefix}layer4.1.bn2.running_var"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("layer3.0.conv1.weight"),
            "encoder.stages.2.layers.0.layer.0.convolution.weight: of the model",
        ),
        (lambda w: w.update(extra=torch.zeros(2)), "extra: of the source, not in the model"),
        (lambda w: w.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), "embedder.embedder.convolution.weight"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_checkpoint_that_does_not_fit_says_where(tmp_path, change, message):
    weights = published()
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="method.visual_weights: .* does not fit method.visual") as error:
        build(stage="generator", visual="resnet18", visual_weights=str(tmp_path / "w.pth"))
    assert message in str(error.value)


def test_a_given_generator_has_its_weights(tmp_path):
    from avfast.generator import build_generator
    from avfast.icgan import icgan_names

    trained = build_generator("scene-32", condition=128).eval()
    own = trained.state_dict()
    state = {name: own[here].clone() for here, name in icgan_names(trained).items()}
    torch.save(state, tmp_path / "g.pth")
    method = build(stage="audio", generator_weights=str(tmp_path / "g.pth"))
    given = method.given_generator().eval()
    noise, z = trained.sample_noise(2), torch.randn(2, 128)
    with torch.no_grad():
        torch.testing.assert_close(given(noise, z), trained(noise, z))
    state.popitem()
    torch.save(state, tmp_path / "g.pth")
    with pytest.raises(ConfigError, match="method.generator_weights"):
        method.given_generator()


def test_a_missing_checkpoint_is_an_error():
    with pytest.raises(ConfigError, match="no such file"):
        build(stage="localiser", visual="resnet18", visual_weights="/no/such/swav.pth")
