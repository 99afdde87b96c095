"""Sound front-ends: waveforms ``[B, S]`` to pictures of sound ``[B, 1, F, T]``, batched, in plain torch.

=================== ================================================= =========================
class               what                                              presets
=================== ================================================= =========================
:class:`LogMel`     log-mel spectrogram, the default of avfast        none
:class:`KaldiFbank` Kaldi's filter bank, as in AST, CAV-MAE and ABRi  ``ks``, ``esc50``, ``cavmae``
:class:`LogPSD`     log power spectral density with a Tukey window    ``sound2scene``, ``ezvsl``
:class:`LogSTFT`    log magnitude of an STFT                          ``ogm``
=================== ================================================= =========================

All of them give finite values for silence. A preset's sample rate is the rate the waveform must have.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mel_filters(
    n_mels: int, n_fft: int, sample_rate: int, low: float, high: float, *, triangles_in: str = "hertz"
) -> Tensor:
    """Triangular filters on the scale ``mel(f) = 1127 ln(1 + f / 700)``, peak 1, float64 ``[n_mels, n_fft / 2
    + 1]``.

    ``triangles_in="mel"`` draws the triangles over the mel axis and leaves the Nyquist bin empty, as Kaldi
    does; ``"hertz"`` draws them over frequency, as HTK-style code in Python does. Narrow low filters may be
    all zero: with Kaldi's 128 filters from 20 Hz at 16 kHz and 512 points, filter 3 is.
    """
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    edges = torch.linspace(_mel(low), _mel(high), n_mels + 2, dtype=torch.float64)
    if triangles_in == "mel":
        x = 1127 * torch.log1p(frequencies / 700)
    else:
        edges, x = 700 * torch.expm1(edges / 1127), frequencies
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = torch.minimum((x - left) / (centre - left), (right - x) / (right - centre)).clamp(min=0)
    if triangles_in == "mel":
        filters[:, -1] = 0
    return filters


def _mel(frequency: float) -> float:
    return 1127 * math.log1p(frequency / 700)


class FrontEnd(nn.Module):
    """Checks the input; children turn ``[B, S]`` to ``[B, 1, F, T]`` in :meth:`spectrogram`."""

    sample_rate: int

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms ``[B, S]``, floating point in [-1, 1], to ``[B, 1, F, T]``.

        Raises:
            TypeError: the waveform is not floating point.
            ValueError: it is not ``[B, S]``, or is shorter than one frame.
        """
        name = f"avfast.data.{type(self).__name__}: waveform"
        if not waveform.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {waveform.dtype}")
        if waveform.dim() != 2 or waveform.shape[1] < self.shortest:
            raise ValueError(f"{name}: expected [B, S] with S >= {self.shortest}, got {tuple(waveform.shape)}")
        # Spectra of half-precision sound are useless; every front-end computes in float32 at least.
        dtype = torch.promote_types(waveform.dtype, torch.float32)
        return self.spectrogram(waveform.to(dtype)).unsqueeze(1)

    @property
    def shortest(self) -> int:
        """Samples needed for one frame."""
        return 1

    def spectrogram(self, waveform: Tensor) -> Tensor:
        raise NotImplementedError


class LogMel(FrontEnd):
    """``log(mel_filters @ |STFT|^2 + eps)``, frames centred with zero padding, ``T = S // hop + 1``.

    Args:
        sample_rate: in Hz.
        n_fft, win_length, hop: in samples; the window is a periodic Hann.
        n_mels, low, high: number of filters and their range in Hz (``high=None`` is half the sample rate).
        eps: the floor under the power.
        mean, std: output is ``(log-mel - mean) / std``.

    >>> LogMel(sample_rate=16000)(torch.zeros(2, 16000)).shape
    torch.Size([2, 1, 64, 101])
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 512,
        win_length: int = 400,
        hop: int = 160,
        n_mels: int = 64,
        low: float = 50.0,
        high: float | None = None,
        eps: float = 1e-6,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.win_length, self.hop = sample_rate, n_fft, win_length, hop
        self.eps, self.mean, self.std = eps, mean, std
        filters = mel_filters(n_mels, n_fft, sample_rate, low, high or sample_rate / 2)
        self.register_buffer("filters", filters.float(), persistent=False)
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)

    def spectrogram(self, waveform: Tensor) -> Tensor:
        spectrum = _stft(waveform, self.n_fft, self.hop, self.win_length, self.window)
        power = spectrum.real**2 + spectrum.imag**2
        mel = self.filters.to(power.dtype) @ power
        return (torch.log(mel + self.eps) - self.mean) / self.std


class LogSTFT(FrontEnd):
    """``log(|STFT| + eps)``, frames centred with zero padding.

    Preset ``ogm``: 22,050 Hz, 3 s, 512 points, hop 353, clipped to [-1, 1], not normalised, ``[B, 1, 257,
    188]``. Shorter sound is repeated. Source: the data loader of OGM-GE (Peng et al., CVPR 2022).
    """

    def __init__(
        self,
        preset: str | None = "ogm",
        *,
        sample_rate: int = 22050,
        n_fft: int = 512,
        hop: int = 353,
        samples: int | None = None,
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        _check_preset(type(self).__name__, preset, ("ogm",))
        self.sample_rate, self.n_fft, self.hop, self.eps = sample_rate, n_fft, hop, eps
        self.samples = 3 * 22050 if preset == "ogm" and samples is None else samples
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def spectrogram(self, waveform: Tensor) -> Tensor:
        waveform = _repeat(waveform, self.samples).clamp(-1, 1)
        return torch.log(_stft(waveform, self.n_fft, self.hop, self.n_fft, self.window).abs() + self.eps)


class KaldiFbank(FrontEnd):
    """Kaldi's log mel filter bank, without dither and energy.

    Mean of the waveform removed; frames of 25 ms every 10 ms that lie wholly inside; per frame: mean removed,
    pre-emphasis ``x[i] - 0.97 x[i - 1]`` (the first sample is its own predecessor), symmetric Hann window,
    zeros up to a power of two, power spectrum, mel filters from 20 Hz to Nyquist drawn over the mel axis,
    ``log(max(., eps))`` with the eps of float32. Then zeros are appended, or frames cut, to ``frames``; then
    normalised, so that the padding is not zero any more. 10 s at 16 kHz are 998 frames.

    ============ ================================= =========
    preset       normalisation                     frames
    ============ ================================= =========
    ``ks``       (x + 4.503877) / (2 * 5.141276)   1024
    ``esc50``    (x + 5.902779) / (2 * 4.507141)   1024
    ``cavmae``   (x + 5.081) / 4.4849              1024
    ============ ================================= =========

    Sources: specifications of "Revisiting Pre-training in Audio-Visual Learning" (ks, esc50) and the data
    loader of CAV-MAE (Gong et al., ICLR 2023). The ESC-50 recipe plays its 5 s twice (``repeats=2``).

    Args:
        preset: one of the above, or None for no normalisation and no padding.
        frames: overrides the preset's number of frames; None with ``preset=None`` keeps all.
        layout: ``"ft"`` gives ``[B, 1, 128, frames]``, ``"tf"`` gives ``[B, 1, frames, 128]`` as ABRi's
            encoders take.
        repeats: how often the waveform is played, one after the other.

    >>> KaldiFbank(preset=None)(torch.randn(1, 160000)).shape
    torch.Size([1, 1, 128, 998])
    """

    PRESETS = {
        "ks": (-4.503877, 2 * 5.141276),
        "esc50": (-5.902779, 2 * 4.507141),
        "cavmae": (-5.081, 4.4849),
    }

    def __init__(
        self,
        preset: str | None = "ks",
        *,
        sample_rate: int = 16000,
        n_mels: int = 128,
        frames: int | None = None,
        layout: str = "ft",
        repeats: int = 1,
    ) -> None:
        super().__init__()
        _check_preset(type(self).__name__, preset, tuple(self.PRESETS))
        if layout not in ("ft", "tf"):
            raise ValueError(f"avfast.data.KaldiFbank: layout: expected 'ft' or 'tf', got {layout!r}")
        if repeats < 1:
            raise ValueError(f"avfast.data.KaldiFbank: repeats: expected 1 at least, got {repeats}")
        self.sample_rate, self.layout, self.repeats = sample_rate, layout, repeats
        self.frames = 1024 if preset is not None and frames is None else frames
        self.mean, self.scale = self.PRESETS[preset] if preset is not None else (0.0, 1.0)
        self.length, self.hop = round(0.025 * sample_rate), round(0.010 * sample_rate)
        self.n_fft = 1 << (self.length - 1).bit_length()
        filters = mel_filters(n_mels, self.n_fft, sample_rate, 20.0, sample_rate / 2, triangles_in="mel")
        window = torch.hann_window(self.length, periodic=False, dtype=torch.float64)
        self.register_buffer("filters", filters.float(), persistent=False)
        self.register_buffer("window", window.float(), persistent=False)

    @property
    def shortest(self) -> int:
        return self.length

    def spectrogram(self, waveform: Tensor) -> Tensor:
        waveform = (waveform - waveform.mean(1, keepdim=True)).repeat(1, self.repeats)
        frames = waveform.unfold(1, self.length, self.hop)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
        spectrum = torch.fft.rfft((frames - 0.97 * before) * self.window.to(frames.dtype), self.n_fft)
        power = spectrum.real**2 + spectrum.imag**2
        mel = power @ self.filters.to(power.dtype).T
        fbank = mel.clamp(min=torch.finfo(torch.float32).eps).log()
        if self.frames is not None:
            fbank = F.pad(fbank[:, : self.frames], (0, 0, 0, max(self.frames - fbank.shape[1], 0)))
        fbank = (fbank - self.mean) / self.scale
        return fbank if self.layout == "tf" else fbank.transpose(1, 2)


class LogPSD(FrontEnd):
    """``log(S + eps)`` of the power spectral density ``S`` with a periodic Tukey window (25 % tapered).

    Frames of 512 samples that lie wholly inside, per-frame mean removed, scaled by ``1 / (sample_rate sum
    w^2)``, all
    bins doubled except the first and the last: what ``scipy.signal.spectrogram`` computes by default.

    ================ ============================================================== ==============
    preset           what                                                           output
    ================ ============================================================== ==============
    ``sound2scene``  10 s at 16 kHz, hop 159, clip mean removed and divided by       257 x 1004
                     (clip standard deviation + 1e-9)
    ``ezvsl``        3 s at 16 kHz, hop 238, divided by 12                          257 x 200
    ================ ============================================================== ==============

    Shorter sound is repeated and longer cut; the waveform is clipped to [-1, 1]. With ``sound2scene``,
    loudness reaches the network **only** through ``eps``: standardising removes every gain except for what
    the floor swallows. Do not lower eps, and do not normalise peaks before, if loudness matters. Sources:
    Sound2Scene (Sung-Bin et al., CVPR 2023) and EZ-VSL (Mo and Morgado, ECCV 2022), their data loaders.

    Args:
        preset: one of the above, or None: any length, no normalisation.
        hop, eps: override the preset's.
        seconds: how much sound is kept, shorter sound repeated; the preset's if left out.

    Raises:
        ValueError: an unknown preset, or seconds that hold no frame.
    """

    PRESETS = {"sound2scene": (159, 160000), "ezvsl": (238, 48000)}

    def __init__(
        self,
        preset: str | None = "sound2scene",
        *,
        sample_rate: int = 16000,
        n_fft: int = 512,
        hop: int | None = None,
        eps: float = 1e-7,
        seconds: float | None = None,
    ) -> None:
        super().__init__()
        _check_preset(type(self).__name__, preset, tuple(self.PRESETS))
        default_hop, self.samples = self.PRESETS[preset] if preset is not None else (n_fft // 4, None)
        if seconds is not None:
            self.samples = round(seconds * sample_rate)
            if self.samples < n_fft:
                raise ValueError(
                    f"avfast.data.LogPSD: seconds: expected at least {n_fft / sample_rate:g}, one frame, got {seconds}"
                )
        self.preset, self.sample_rate, self.n_fft = preset, sample_rate, n_fft
        self.hop, self.eps = hop or default_hop, eps
        window = tukey_window(n_fft)
        weight = torch.full((n_fft // 2 + 1,), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0
        scale = weight / (sample_rate * (window**2).sum())
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)

    @property
    def shortest(self) -> int:
        return self.n_fft if self.samples is None else 1

    def spectrogram(self, waveform: Tensor) -> Tensor:
        waveform = _repeat(waveform, self.samples).clamp(-1, 1)
        frames = waveform.unfold(1, self.n_fft, self.hop)
        frames = (frames - frames.mean(2, keepdim=True)) * self.window.to(frames.dtype)
        spectrum = torch.fft.rfft(frames)
        power = (spectrum.real**2 + spectrum.imag**2) * self.scale.to(frames.dtype)
        out = torch.log(power + self.eps).transpose(1, 2)
        if self.preset == "sound2scene":
            std, mean = torch.std_mean(out, dim=(1, 2), correction=0, keepdim=True)
            out = (out - mean) / (std + 1e-9)
        return out / 12.0 if self.preset == "ezvsl" else out


def tukey_window(n: int, taper: float = 0.25) -> Tensor:
    """The periodic Tukey window, float64 ``[n]``: half-cosines over ``taper / 2`` of either end."""
    x = torch.arange(n, dtype=torch.float64) / n
    x = torch.minimum(x, 1 - x) / (taper / 2)
    return torch.where(x < 1, 0.5 - 0.5 * torch.cos(math.pi * x), torch.ones_like(x))


def _repeat(waveform: Tensor, samples: int | None) -> Tensor:
    if samples is None:
        return waveform
    return waveform.repeat(1, -(-samples // waveform.shape[1]))[:, :samples]


def _stft(waveform: Tensor, n_fft: int, hop: int, win_length: int, window: Tensor) -> Tensor:
    return torch.stft(
        waveform,
        n_fft,
        hop,
        win_length,
        window.to(waveform.dtype),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )


def _check_preset(name: str, preset: str | None, known: tuple[str, ...]) -> None:
    if preset is not None and preset not in known:
        raise ValueError(f"avfast.data.{name}: preset: expected one of {known} or None, got {preset!r}")
