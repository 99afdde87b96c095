"""The networks of a run read back: latents, noise that is shared, what loudness does, and runs that cannot be used."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

for library in ("av", "transformers", "safetensors", "PIL"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from engine_fixtures import real_clips  # noqa: E402
from scene_fixtures import (  # noqa: E402, F401
    INPUTS,
    SIZE,
    WIDTH,
    finished_run,
    loaded_synthesiser,
    quiet_noise,
    small_modules,
    write_run,
)

from avfast.data.frontends import LogPSD  # noqa: E402
from avfast.encoders import Encoder  # noqa: E402
from avfast.engine.scene.sound import read_sound  # noqa: E402
from avfast.engine.scene.synthesis import Synthesiser  # noqa: E402
from avfast.errors import AvfastError, CheckpointError  # noqa: E402

RATE = INPUTS.sample_rate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run to damage."""
    return shutil.copytree(run, tmp_path / "own")


def test_a_run_reads_back_as_the_networks_that_were_exported(run, synthesiser):
    modules = small_modules()
    audio, visual = (Encoder(modules[name], WIDTH) for name in ("audio_encoder", "visual_encoder"))
    waveforms = torch.randn(3, RATE) * 0.1
    with torch.no_grad():
        heard = LogPSD("sound2scene", seconds=1.0)(waveforms)
        z = F.normalize(modules["audio_head"](audio.pooled(heard)).relu(), dim=1)
        torch.testing.assert_close(synthesiser.embed(waveforms), z, rtol=1e-5, atol=1e-6)
        noise = synthesiser.noise(5, 2)
        drawn = modules["generator"](noise, z[:1].expand(2, -1))
        expected = ((drawn + 1) * 127.5).round().to(torch.uint8)
    made = synthesiser.images(z[:1], seed=5, count=2)
    assert made.shape == (1, 2, 3, SIZE, SIZE) and made.dtype is torch.uint8
    assert (made[0].int() - expected.int()).abs().max() <= 1
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    with torch.no_grad():
        z_v = F.normalize(visual.pooled((pictures / 255 - mean) / std), dim=1)
    torch.testing.assert_close(synthesiser.embed_pictures(pictures), z_v, rtol=1e-4, atol=1e-5)
    assert (synthesiser.size, synthesiser.duration, synthesiser.sample_rate) == (SIZE, 1.0, RATE)
    same = Synthesiser.load(run / "export")
    assert same.fingerprint == synthesiser.fingerprint and len(same.fingerprint) == 64
    torch.testing.assert_close(same.embed(waveforms), synthesiser.embed(waveforms), rtol=0, atol=0)


def test_latents_are_unit_and_not_negative(synthesiser):
    z = synthesiser.embed(torch.randn(20, RATE) * torch.logspace(-4, 0, 20)[:, None])
    torch.testing.assert_close(z.double().pow(2).sum(1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (z >= 0).all() and z.shape == (20, WIDTH)
    large = torch.randint(0, 256, (1, 3, 90, 47), dtype=torch.uint8)
    assert synthesiser.embed_pictures(large).shape == (1, WIDTH)


def test_all_rows_share_their_noise(synthesiser, monkeypatch):
    seen = []
    inner = synthesiser._generator.forward
    monkeypatch.setattr(synthesiser._generator, "forward", lambda n, z: seen.append((n, z)) or inner(n, z))
    z = F.normalize(torch.rand(7, WIDTH), dim=1)
    made = synthesiser.images(z, seed=3, count=4)  # 28 pictures: more than one pass
    noise, latents = (torch.cat(parts) for parts in zip(*seen, strict=True))
    noise, latents = noise.unflatten(0, (7, 4)), latents.unflatten(0, (7, 4))
    assert len(seen) > 1 and made.shape[:2] == (7, 4)
    assert all(torch.equal(row, noise[0]) for row in noise)
    assert len({tuple(row.tolist()) for row in noise[0]}) == 4
    assert all(torch.equal(latents[:, k], z) for k in range(4))
    again = synthesiser.images(z[[2, 2]], seed=3, count=4)
    assert torch.equal(again[0], again[1])
    assert (again[0].int() - made[2].int()).abs().max() <= 1  # other batches round differently


def test_a_picture_of_a_seed_is_the_same_however_many_are_drawn(synthesiser):
    torch.testing.assert_close(synthesiser.noise(9, 20)[:3], synthesiser.noise(9, 3), rtol=0, atol=0)
    assert not torch.equal(synthesiser.noise(9, 1), synthesiser.noise(8, 1))
    z, state = torch.rand(1, WIDTH), torch.get_rng_state()
    synthesiser.images(z, seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_tensors_are_refused_by_name(synthesiser):
    with pytest.raises(ValueError, match=r"Synthesiser\.embed: waveforms: expected shape \[B, S\], got \[16000\]"):
        synthesiser.embed(torch.zeros(RATE))
    with pytest.raises(ValueError, match="expected finite samples, got NaN or infinity"):
        synthesiser.embed(torch.full((1, RATE), float("nan")))
    with pytest.raises(TypeError, match="expected a floating-point tensor"):
        synthesiser.embed(torch.zeros(1, RATE, dtype=torch.int16))
    with pytest.raises(TypeError, match="frames: expected torch.uint8"):
        synthesiser.embed_pictures(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"pictures: expected shape \[B, 3, H, W\]"):
        synthesiser.embed_pictures(torch.zeros(3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"condition: expected shape \(2, 128\), got \(2, 5\)"):
        synthesiser.images(torch.rand(2, 5))
    with pytest.raises(ValueError, match="count: expected a positive number, got 0"):
        synthesiser.images(torch.rand(2, WIDTH), count=0)


def rms_change(waveform: torch.Tensor, gain: float, eps: float) -> float:
    """Of the network's input, in units of its standard deviation, as the waveform is multiplied."""
    before, after = LogPSD("sound2scene", eps=eps)(torch.stack([waveform, gain * waveform]))
    return (after - before).pow(2).mean().sqrt().item()


def test_loudness_reaches_the_network_only_through_the_floor():
    """Standardised per clip, a log spectrum loses every gain: but for bins that the floor of 1e-7 swallows."""
    x = quiet_noise()
    density = LogPSD(None, hop=159, eps=0.0)(x[None]).exp()
    assert (density < 1e-7).double().mean() > 0.5
    with_floor, without = rms_change(x, 0.1, 1e-7), rms_change(x, 0.1, 1e-12)
    assert 0.5 < with_floor < 0.75
    assert with_floor > 10 * without
    assert rms_change(x.double(), 0.1, 1e-30) < 1e-6


def test_loudness_of_a_recording_reaches_the_network():
    """With codecs' empty bands a recording has bins below any floor, so the ratio is smaller than of the model."""
    x = read_sound(sorted((real_clips() / "clips").iterdir())[0], 16000, 10.0)
    assert 0.3 < rms_change(x, 0.1, 1e-7) < 0.8
    assert rms_change(x, 0.1, 1e-7) > 2 * rms_change(x, 0.1, 1e-12)


def test_the_front_end_of_a_run_keeps_its_floor(synthesiser):
    assert synthesiser.frontend.eps == 1e-7
    x = quiet_noise(1.0)
    heard = synthesiser.spectrogram(torch.stack([x, 0.1 * x]))
    assert (heard[0] - heard[1]).pow(2).mean().sqrt() > 0.4


def damaged(folder) -> str:
    with pytest.raises(AvfastError) as caught:
        Synthesiser.load(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def edit_card(run, **facts) -> None:
    card = run / "export" / "avfast.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **facts}))


def test_folders_that_are_no_finished_run(own, tmp_path):
    (tmp_path / "plain").mkdir()
    assert "is not the folder of a run" in damaged(tmp_path / "plain")
    (tmp_path / "half" / "audio" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "audio" / "checkpoints" / "last.pt").touch()
    assert "is a run that is not finished; continue it with --resume auto" in damaged(tmp_path / "half")
    torch.save({"state_dict": {}}, tmp_path / "model.pt")
    assert "is a file; expected the folder" in damaged(tmp_path / "model.pt")
    shutil.rmtree(own / "export" / "generator")
    text = damaged(own)
    assert "not finished, or one stage of a run: it has audio_encoder" in text and "but no generator" in text


def test_cards_that_do_not_fit(own):
    edit_card(own, recipe="av-align")
    assert "is of recipe 'av-align'; expected a finished run of sound2scene" in damaged(own)
    edit_card(own, recipe="sound2scene", inputs={"frames": 1})
    assert "avfast.json' does not describe its inputs" in damaged(own)
    edit_card(own, inputs={**vars(INPUTS), "frontend": "log-cabin"})
    assert "audio front-end 'log-cabin'" in damaged(own)
    edit_card(own, inputs={**vars(INPUTS), "frontend_options": {"floor": 1}})
    assert "unexpected keyword argument 'floor'" in damaged(own)
    edit_card(own, inputs={**vars(INPUTS), "frontend": None})
    assert "expected the name of a front-end, got None" in damaged(own)
    edit_card(own, inputs=vars(INPUTS), frame_mean=[0.5])
    assert "expected 3 numbers" in damaged(own)
    (own / "export" / "avfast.json").write_text("{")
    assert "cannot be read as JSON" in damaged(own)


@pytest.mark.parametrize("name", ["audio_encoder", "audio_head", "generator", "visual_encoder"])
def test_weights_that_are_torn_absent_or_pickled(own, name):
    file = own / "export" / name / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"{name}/model.safetensors' cannot be read" in damaged(own)
    torch.save({"weight": torch.zeros(2, 2)}, file)
    assert f"{name}/model.safetensors' cannot be read" in damaged(own)
    file.rename(file.with_name("pytorch_model.bin"))
    assert "no such file (a folder needs model.safetensors)" in damaged(own)


@pytest.mark.parametrize("name", ["audio_encoder", "generator", "visual_encoder"])
def test_weights_of_another_network(own, name):
    from safetensors.torch import load_file, save_file

    file = own / "export" / name / "model.safetensors"
    weights = load_file(file)
    first, *_ = (key for key in weights if key.endswith("weight"))
    lacking = {key: value for key, value in weights.items() if key != first}
    save_file(lacking, file, metadata={"format": "pt"})
    assert f"{name}': weights do not fit config.json" in damaged(own) and "Missing key" in damaged(own)
    save_file({**weights, "more": torch.zeros(1)}, file, metadata={"format": "pt"})
    assert "Unexpected key" in damaged(own)
    save_file({**weights, first: weights[first] * float("nan")}, file, metadata={"format": "pt"})
    assert f"weights hold NaN or infinity: {first}" in damaged(own)


def test_configurations_that_do_not_fit(own):
    config = own / "export" / "generator" / "config.json"
    values = json.loads(config.read_text())
    for change, answer in (
        ({"size": 17}, "size: expected 4 times a power of two"),
        ({"width": 8}, "weights do not fit config.json"),
        ({"width": "wide"}, "does not describe a generator"),
    ):
        config.write_text(json.dumps({**values, **change}))
        assert answer in damaged(own), change
    config.write_text("[]")
    assert "does not describe a generator" in damaged(own)
    config.unlink()
    assert "does not describe a generator" in damaged(own)


def test_parts_that_do_not_fit_each_other(tmp_path):
    modules = small_modules()
    narrow = {**modules, "audio_head": torch.nn.Linear(WIDTH, 7)}
    assert "the audio head gives 7 values, the generator reads 128" in damaged(write_run(tmp_path / "a", narrow))
    other = {**modules, "audio_head": torch.nn.Linear(5, WIDTH)}
    assert "the audio head reads 5 values, the audio encoder gives 128" in damaged(write_run(tmp_path / "b", other))
    deep = {**modules, "audio_head": torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH))}
    assert "expected a linear layer with weight [D, C], got 0.bias [128], 0.weight" in damaged(
        write_run(tmp_path / "c", deep)
    )
    colours = {**modules, "audio_encoder": modules["visual_encoder"]}
    assert "audio_encoder" in damaged(write_run(tmp_path / "d", colours))


def test_a_generator_that_draws_nothing_finite_is_said(synthesiser, monkeypatch):
    monkeypatch.setattr(synthesiser._generator, "forward", lambda n, z: torch.full((len(n), 3, 4, 4), float("nan")))
    with pytest.raises(CheckpointError, match="draws NaN or infinity"):
        synthesiser.images(torch.rand(1, WIDTH))
