"""Figures of manipulated sounds: the latents they draw, noise that columns share, and figures that are left out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

for library in ("av", "transformers", "safetensors", "PIL", "matplotlib"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from PIL import Image  # noqa: E402
from scene_fixtures import (  # noqa: E402, F401
    INPUTS,
    WIDTH,
    finished_run,
    loaded_synthesiser,
    quiet_noise,
    small_modules,
    tone,
    write_run,
)

from avfast.engine.drawing import Album, kept_drawings  # noqa: E402
from avfast.engine.scene import manipulation  # noqa: E402
from avfast.engine.scene.synthesis import Synthesiser  # noqa: E402
from avfast.nn.latents import edit_latent, mix_latents  # noqa: E402

RATE = INPUTS.sample_rate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def asked(synthesiser, monkeypatch):
    """Latents, seed and count of every call for pictures."""
    calls = []
    images = synthesiser.images
    monkeypatch.setattr(
        synthesiser, "images",
        lambda z, *, seed=0, count=1: calls.append((z, seed, count)) or images(z, seed=seed, count=count),
    )  # fmt: skip
    return calls


@pytest.fixture(scope="module")
def noise():
    return quiet_noise(1.0, level=0.1)


@pytest.fixture(scope="module")
def note():
    return torch.from_numpy(tone(1.0, RATE)).float()


@pytest.fixture(scope="module")
def picture():
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def is_picture(path, least: int = 200) -> bool:
    with Image.open(path) as image:
        return min(image.size) > least


def test_volume_sweep_draws_the_sound_at_each_gain(synthesiser, asked, noise, tmp_path):
    gains = (0.1, 1.0, 2.0)
    path = manipulation.volume_sweep(synthesiser, noise, gains=gains, seed=4, count=2).draw(tmp_path / "new" / "v.png")
    assert path == tmp_path / "new" / "v.png" and is_picture(path)
    ((z, seed, count),) = asked  # one call, so all columns share their noise
    torch.testing.assert_close(z, synthesiser.embed(torch.stack([g * noise for g in gains])))
    assert (seed, count) == (4, 2) and not torch.allclose(z[0], z[1])


def test_mixture_adds_the_second_sound_at_each_gain_and_ends_with_it_alone(synthesiser, asked, noise, note, tmp_path):
    assert is_picture(manipulation.mixture(synthesiser, noise, note, gains=(0.0, 0.5)).draw(tmp_path / "m.png"))
    ((z, _, _),) = asked
    torch.testing.assert_close(z, synthesiser.embed(torch.stack([noise, noise + 0.5 * note, note])))


def test_image_and_sound_goes_from_the_one_to_the_other(synthesiser, asked, noise, picture, tmp_path):
    assert is_picture(manipulation.image_and_sound(synthesiser, picture, noise, steps=3).draw(tmp_path / "i.png"))
    ((z, _, _),) = asked
    z_v, z_a = synthesiser.embed_pictures(picture[None]), synthesiser.embed(noise[None])
    torch.testing.assert_close(z, torch.cat([z_v, mix_latents(z_v, z_a, 0.5), z_a]))


def test_edit_moves_the_picture_as_its_sound_gets_louder(synthesiser, asked, noise, picture, tmp_path):
    drawing = manipulation.edit_by_sound(synthesiser, picture, noise, strengths=(0.0, 2.0), quiet=0.2)
    assert is_picture(drawing.draw(tmp_path / "e.png"))
    ((z, _, _),) = asked
    z_v = synthesiser.embed_pictures(picture[None])
    quiet, loud = synthesiser.embed(torch.stack([0.2 * noise, noise])).split(1)
    torch.testing.assert_close(z, torch.cat([z_v, edit_latent(z_v, quiet, loud, 2.0)]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(z[0], z[1])


@pytest.mark.parametrize("right", [None, [True, False]])
def test_scene_sheet_draws_every_clip_from_its_sound(synthesiser, asked, noise, note, picture, tmp_path, right):
    waveforms, frames = torch.stack([noise, note]), picture.expand(2, -1, -1, -1)
    drawing = manipulation.scene_sheet(synthesiser, waveforms, frames, ["a", "b"], right=right, count=3)
    assert is_picture(drawing.draw(tmp_path / "s.png"))
    ((z, seed, count),) = asked
    torch.testing.assert_close(z, synthesiser.embed(waveforms))
    assert (seed, count) == (0, 3)


def test_spectrograms_that_lie_on_their_side_are_turned(synthesiser, monkeypatch, noise):
    upright = manipulation.drawn_spectrograms(synthesiser, noise[None])
    assert upright.shape[:2] == (1, 257)
    inner = synthesiser.spectrogram
    monkeypatch.setattr(synthesiser, "spectrogram", lambda x: inner(x).mT)
    monkeypatch.setitem(synthesiser.inputs.frontend_options, "layout", "tf")
    assert torch.equal(manipulation.drawn_spectrograms(synthesiser, noise[None]), upright)


def test_a_sound_without_an_answer_leaves_its_figure_out(noise, picture, tmp_path):
    modules = small_modules()
    modules["audio_head"].bias.data.fill_(-1e6)
    dead = Synthesiser.load(write_run(tmp_path / "dead", modules))
    assert not dead.embed(noise[None]).any()
    assert manipulation.image_and_sound(dead, picture, noise) is None
    assert manipulation.volume_sweep(dead, noise, count=1).draw(tmp_path / "v.png")
    assert manipulation.edit_by_sound(dead, picture, noise, count=1).draw(tmp_path / "e.png")


def test_without_matplotlib_nothing_is_drawn_but_all_is_kept(synthesiser, monkeypatch, noise, picture, tmp_path):
    drawings = [
        manipulation.volume_sweep(synthesiser, noise),
        manipulation.mixture(synthesiser, noise, noise),
        manipulation.image_and_sound(synthesiser, picture, noise),
        manipulation.edit_by_sound(synthesiser, picture, noise),
        manipulation.scene_sheet(synthesiser, noise[None], picture[None], ["a"]),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(manipulation, "matplotlib_figure", lambda: None)
        album = Album(tmp_path)
        made = [album.add(f"p{i}", f"p{i}.png", drawing) for i, drawing in enumerate(drawings)]
        assert made == [None] * 5 and not album.pictures and not list(tmp_path.glob("*.png"))
        assert (
            manipulation.sheet(tmp_path / "x.png", [torch.zeros(2, 2)], [picture[None]], ["a"], "t", duration=1) is None
        )
    kept, problems = kept_drawings(tmp_path)
    assert [k.title for k in kept] == [f"p{i}" for i in range(5)] and not problems
    for now, later in zip(drawings, kept, strict=True):  # where matplotlib is, the same pictures
        first, second = (d.draw(tmp_path / f"{n}.png") for n, d in (("first", now), ("second", later.drawing)))
        assert first.read_bytes() == second.read_bytes()


def test_the_same_latent_gives_the_same_column(synthesiser):
    """What a sweep rests on: without a change of the latent there is no change of the picture."""
    z = F.normalize(torch.rand(1, WIDTH), dim=1).expand(5, -1)
    drawn = synthesiser.images(z, seed=1, count=2)
    assert all(torch.equal(row, drawn[0]) for row in drawn)
