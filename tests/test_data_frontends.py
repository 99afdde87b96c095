"""Front-ends against formulas written a second time, in float64 numpy, frame by frame."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avfast.data.demo.modelled import MODELS
from avfast.data.frontends import KaldiFbank, LogMel, LogPSD, LogSTFT, mel_filters, tukey_window
from avfast.data.images import IMAGENET_MEAN, IMAGENET_STD, NormalizeFrames

RATE = 16000


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    """10 s of a plucked string with a little noise: tonal, wide-band and loud-and-soft at once."""
    rng = np.random.default_rng(0)
    pluck = MODELS[0](rng, 10 * RATE)
    return (0.5 * pluck / np.abs(pluck).max() + 0.003 * rng.standard_normal(10 * RATE)).astype(np.float32)


def mel(f):
    return 1127.0 * math.log(1 + f / 700)


def kaldi_fbank_float64(x: np.ndarray, n_mels=128, rate=RATE) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.mean()
    step = (mel(rate / 2) - mel(20)) / (n_mels + 1)
    bank = np.zeros((n_mels, 257))
    for m in range(n_mels):
        left, centre, right = (mel(20) + (m + k) * step for k in range(3))
        for k in range(256):  # Kaldi leaves out the Nyquist bin
            at = mel(k * rate / 512)
            if left < at <= centre:
                bank[m, k] = (at - left) / (centre - left)
            elif centre < at < right:
                bank[m, k] = (right - at) / (right - centre)
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / 399) for i in range(400)])
    rows = []
    for start in range(0, len(x) - 399, 160):
        frame = x[start : start + 400] - x[start : start + 400].mean()
        emphasised = frame.copy()
        emphasised[1:] -= 0.97 * frame[:-1]
        emphasised[0] -= 0.97 * frame[0]
        power = np.abs(np.fft.rfft(emphasised * window, 512)) ** 2
        rows.append(np.log(np.maximum(bank @ power, np.finfo(np.float32).eps)))
    return np.stack(rows)


def test_kaldi_fbank_against_float64(wave):
    expected = kaldi_fbank_float64(wave)
    assert expected.shape == (998, 128)
    got = KaldiFbank(preset=None)(torch.from_numpy(wave)[None])[0, 0].T.double().numpy()
    exact = KaldiFbank(preset=None).double()(torch.from_numpy(wave).double()[None])[0, 0].T.numpy()
    filled = expected > -8  # well-filled bins; in nearly empty ones float32 itself is off by up to 2e-3
    # Window and filters are stored in float32, so float64 input agrees to their rounding.
    assert np.abs(exact - expected)[filled].max() < 1e-5
    error = np.abs(got - expected)
    assert error[filled].max() < 1e-4
    assert np.quantile(error, 0.999) < 2e-3


STORED = {  # frame: bands 0, 3, 10, 31, 64, 90 and 127, natural logarithms
    0: (-0.41731, -15.94238, -9.48282, -7.21007, -7.21698, 0.93787, -1.62650),
    13: (-0.60952, -15.94238, -2.07353, -7.19218, -7.10187, 0.93782, -1.62518),
    49: (-2.20987, -15.94238, -9.71954, -6.92121, -7.09303, 0.93776, -1.62510),
    97: (-4.23448, -15.94238, -11.02608, -7.17877, -6.81420, 0.93769, -1.62504),
}


def test_kaldi_fbank_against_stored_numbers():
    """Of another implementation: transformers 5.23.0, audio_utils.spectrogram in float64 with its Kaldi mel filters."""
    i = np.arange(16000)
    signal = 0.3 * np.sin(0.02 * i) * np.exp(-i / 8000) + 0.1 * np.sin(i * i * 2e-5)
    signal = (signal + 0.05 * ((i * 7919) % 101 - 50) / 50).astype(np.float32)
    fbank = KaldiFbank(preset=None, layout="tf")(torch.from_numpy(signal)[None])[0, 0]
    assert fbank.shape == (98, 128)
    for frame, numbers in STORED.items():
        found = fbank[frame, [0, 3, 10, 31, 64, 90, 127]]
        torch.testing.assert_close(found, torch.tensor(numbers), rtol=0, atol=2e-4)


def test_one_kaldi_filter_is_empty(wave):
    bank = mel_filters(128, 512, RATE, 20, RATE / 2, triangles_in="mel")
    assert (bank.sum(1) == 0).nonzero().flatten().tolist() == [3]
    fbank = KaldiFbank(preset=None)(torch.from_numpy(wave)[None])
    assert torch.equal(fbank[0, 0, 3], torch.full((998,), math.log(torch.finfo(torch.float32).eps)))


@pytest.mark.parametrize(
    ("preset", "mean", "scale"),
    [("ks", -4.503877, 10.282552), ("esc50", -5.902779, 9.014282), ("cavmae", -5.081, 4.4849)],
)
def test_kaldi_presets_pad_before_normalising(wave, preset, mean, scale):
    x = torch.from_numpy(wave)[None]
    plain, out = KaldiFbank(preset=None)(x), KaldiFbank(preset)(x)
    assert out.shape == (1, 1, 128, 1024)
    assert torch.allclose(out[..., :998], (plain - mean) / scale, atol=1e-6)
    assert torch.allclose(out[..., 998:], torch.tensor(-mean / scale), atol=1e-6)
    assert torch.equal(KaldiFbank(preset, layout="tf")(x), out.transpose(2, 3))
    assert KaldiFbank(preset)(torch.cat([x, x], 1)).shape == (1, 1, 128, 1024)


def test_esc50_plays_its_sound_twice(wave):
    x = torch.from_numpy(wave)[None, :80000]
    twice = KaldiFbank("esc50", repeats=2)(x)
    # Logarithms of nearly empty bins: what a sum rounds to may depend on how it is laid out.
    torch.testing.assert_close(twice, KaldiFbank("esc50")(torch.cat([x, x], 1)), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="KaldiFbank: repeats: expected 1 at least, got 0"):
        KaldiFbank(repeats=0)


def test_psd_against_scipy(wave):
    signal = pytest.importorskip("scipy.signal", reason="scipy is the oracle of the power spectral density")
    x = np.clip(np.tile(wave.astype(np.float64), 10)[:160000], -1, 1)
    _, _, power = signal.spectrogram(x, RATE, nperseg=512, noverlap=353)
    log = np.log(power + 1e-7)
    expected = (log - log.mean()) / (log.std() + 1e-9)
    got = LogPSD()(torch.from_numpy(wave)[None])
    assert got.shape == (1, 1, 257, 1004)
    assert np.abs(got[0, 0].numpy() - expected).max() < 1e-4

    _, _, power = signal.spectrogram(wave[:48000].astype(np.float64), RATE, nperseg=512, noverlap=274)
    got = LogPSD("ezvsl")(torch.from_numpy(wave)[None])
    assert got.shape == (1, 1, 257, 200)
    assert np.abs(12 * got[0, 0].numpy() - np.log(power + 1e-7)).max() < 1e-3


def test_psd_formula_without_scipy(wave):
    """The same formula by hand, so that the check does not depend on what is installed."""
    ramp = [0.5 - 0.5 * math.cos(2 * math.pi * i / 128) for i in range(64)]
    window = np.array(ramp + [1.0] * 385 + ramp[:0:-1])
    assert np.abs(tukey_window(512).numpy() - window).max() < 1e-15
    rows = []
    for start in range(0, 16000 - 511, 200):
        frame = wave[start : start + 512].astype(np.float64)
        power = np.abs(np.fft.rfft((frame - frame.mean()) * window)) ** 2 / (RATE * (window**2).sum())
        power[1:-1] *= 2
        rows.append(np.log(power + 1e-7))
    got = LogPSD(preset=None, hop=200)(torch.from_numpy(wave[None, :16000]))
    assert np.abs(got[0, 0].T.numpy() - np.stack(rows)).max() < 1e-4


def test_loudness_survives_only_through_the_floor(wave):
    """Standardising removes gain: without the floor a tenth of the volume changes (next to) nothing."""
    loud = torch.from_numpy(wave)[None].double()
    change = {}
    for eps in (1e-7, 1e-16):
        front = LogPSD(eps=eps).double()
        change[eps] = (front(loud) - front(0.1 * loud)).square().mean().sqrt().item()
    assert change[1e-7] > 0.3
    assert change[1e-16] < 0.03


def stft_power(x, n_fft, hop, length):
    """Centred frames with zero padding and a periodic Hann window in the middle of ``n_fft`` points."""
    window = np.zeros(n_fft)
    first = (n_fft - length) // 2
    window[first : first + length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    x = np.pad(x.astype(np.float64), n_fft // 2)
    frames = [x[s : s + n_fft] * window for s in range(0, len(x) - n_fft + 1, hop)]
    return np.abs(np.fft.rfft(np.stack(frames))) ** 2


def test_log_mel_against_float64(wave):
    x = wave[:24000]
    edges = [700 * math.expm1(m / 1127) for m in np.linspace(mel(50), mel(8000), 66)]
    bank = np.zeros((64, 257))
    for m in range(64):
        for k in range(257):
            f = k * RATE / 512
            rise, fall = (
                (f - edges[m]) / (edges[m + 1] - edges[m]),
                (edges[m + 2] - f) / (edges[m + 2] - edges[m + 1]),
            )
            bank[m, k] = max(0, min(rise, fall))
    expected = np.log(stft_power(x, 512, 160, 400) @ bank.T + 1e-6).T
    got = LogMel()(torch.from_numpy(x)[None])
    assert got.shape == (1, 1, 64, 24000 // 160 + 1)
    assert np.abs(got[0, 0].numpy() - expected).max() < 1e-3
    shifted = LogMel(mean=-2.0, std=3.0)(torch.from_numpy(x)[None])
    assert torch.allclose(shifted, (got + 2) / 3, atol=1e-6)


def test_ogm_against_float64(wave):
    x = wave[:44100]
    expected = 0.5 * np.log(stft_power(np.tile(x, 3)[: 3 * 22050], 512, 353, 512))
    got = LogSTFT()(torch.from_numpy(x)[None])
    assert got.shape == (1, 1, 257, 188)
    assert np.abs(got[0, 0].T.numpy() - expected)[expected > -6].max() < 2e-3


FRONTS = [LogMel(), LogSTFT(), KaldiFbank(), KaldiFbank("cavmae"), LogPSD(), LogPSD("ezvsl")]


@pytest.mark.parametrize("front", FRONTS, ids=lambda f: f"{type(f).__name__}-{getattr(f, 'preset', '')}")
class TestEveryFrontEnd:
    def test_silence_is_finite(self, front):
        assert front(torch.zeros(2, 32000)).isfinite().all()

    def test_batches_are_independent(self, front, wave):
        x = torch.from_numpy(np.stack([wave[:20000], wave[20000:40000]]))
        both = front(x)
        assert both.shape[:2] == (2, 1)
        for row in range(2):
            assert torch.allclose(both[row], front(x[row : row + 1])[0], atol=2e-4)

    def test_bad_input(self, front):
        with pytest.raises(TypeError, match="floating-point"):
            front(torch.zeros(1, 16000, dtype=torch.int16))
        with pytest.raises(ValueError, match=r"\[B, S\]"):
            front(torch.zeros(16000))

    def test_half_precision_computes_in_single(self, front, wave):
        x = torch.from_numpy(wave[None, :20000]).bfloat16()
        assert torch.equal(front(x), front(x.float()))

    def test_gradient_is_finite(self, front, wave):
        x = torch.from_numpy(wave[None, :20000].copy()).requires_grad_()
        front(x).square().mean().backward()
        assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_unknown_presets():
    for front in (KaldiFbank, LogPSD, LogSTFT):
        with pytest.raises(ValueError, match="preset"):
            front("vgg")


def test_normalize_frames():
    frames = torch.randint(0, 256, (2, 3, 3, 5, 7), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (frames.double() / 255 - mean) / std
    assert (NormalizeFrames()(frames).double() - expected).abs().max() < 1e-6
    assert NormalizeFrames(dtype=torch.bfloat16)(frames).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="uint8"):
        NormalizeFrames()(frames.float())
    with pytest.raises(ValueError, match="3, H, W"):
        NormalizeFrames()(frames[:, :, :1])
