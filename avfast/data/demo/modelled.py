"""Sixteen sounds from simple physics, in numpy: the demonstration set's sounds when no recordings are
installed.

Every function takes a ``numpy`` generator and a length in samples, and returns a waveform at :data:`RATE`.
They are synthetic, and everything that uses them says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

RATE = 16000


def _time(n: int) -> np.ndarray:
    return np.arange(n) / RATE


def _noise(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """White noise with soft band edges at ``low`` and ``high`` Hz, of unit RMS."""
    frequency = np.fft.rfftfreq(n, 1 / RATE)
    shape = 1 / (1 + (frequency / high) ** 8) * (1 - 1 / (1 + (frequency / low) ** 8))
    out = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * np.sqrt(shape), n)
    return out / out.std()


def _modes(frequencies: Iterable[float], decays: Iterable[float], gains: Iterable[float], n: int) -> np.ndarray:
    """A struck body: a sum of decaying sines (frequency in Hz, decay as the time to 1/e in seconds)."""
    t = _time(n)
    return sum(
        g * np.exp(-t / d) * np.sin(2 * np.pi * f * t)
        for f, d, g in zip(frequencies, decays, gains, strict=True)
        if f < RATE / 2
    )


def _scatter(n: int, events: Iterable[tuple[float, np.ndarray]]) -> np.ndarray:
    """Add events at times in seconds."""
    out = np.zeros(n)
    for at, event in events:
        first = int(at * RATE)
        part = event[: max(n - first, 0)]
        out[first : first + len(part)] += part
    return out


def _times(rng: np.random.Generator, n: int, rate: float, jitter: float = 0.3) -> list[float]:
    """About ``rate`` event times per second; jitter 0 is a clockwork."""
    steps = (1 + jitter * rng.uniform(-1, 1, int(n / RATE * rate * 2) + 2)) / rate
    times = np.cumsum(steps) - steps[0] * rng.uniform()
    return [float(t) for t in times if 0 <= t < n / RATE]


def plucked_string(rng: np.random.Generator, n: int) -> np.ndarray:
    """Karplus and Strong, 1983: a burst of noise in a delay line that averages neighbours."""

    def pluck(frequency: float) -> np.ndarray:
        period = round(RATE / frequency)
        line = rng.uniform(-1, 1, period)
        rounds = []
        for _ in range(int(1.2 * RATE / period)):
            rounds.append(line)
            line = 0.996 * 0.5 * (line + np.roll(line, 1))
        return np.concatenate(rounds)

    notes = 196.0 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12], 400) / 12)
    return _scatter(n, ((t, pluck(f)) for t, f in zip(_times(rng, n, 2.5), notes, strict=False)))


def struck_bar(rng: np.random.Generator, n: int) -> np.ndarray:
    """A free bar (glockenspiel): mode ratios 1, 2.756, 5.404, 8.933."""
    ratios = np.array([1, 2.756, 5.404, 8.933])
    pitches = 880 * 2 ** (rng.choice([0, 4, 7, 12], 400) / 12)
    hits = (_modes(f * ratios, [0.35, 0.2, 0.1, 0.05], [1, 0.5, 0.3, 0.2], RATE) for f in pitches)
    return _scatter(n, zip(_times(rng, n, 3.0, 0.5), hits, strict=False))


def bell(rng: np.random.Generator, n: int) -> np.ndarray:
    """A church bell: hum, prime, minor third, fifth, nominal and two more partials."""
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.5, 3])
    toll = _modes(330 * ratios, 0.9 / np.sqrt(ratios), [0.5, 0.8, 0.7, 0.3, 0.8, 0.3, 0.2], 2 * RATE)
    return _scatter(n, ((t, toll * rng.uniform(0.6, 1)) for t in _times(rng, n, 0.9, 0.2)))


def water_drops(rng: np.random.Generator, n: int) -> np.ndarray:
    """Minnaert bubbles: decaying sines whose pitch rises as the bubble nears the surface."""

    def drop() -> np.ndarray:
        t, base = _time(RATE // 5), rng.uniform(700, 1600)
        phase = 2 * np.pi * base * (t + 4 * t**2)
        return np.exp(-t / 0.03) * np.sin(phase)

    return _scatter(n, ((t, drop() * rng.uniform(0.4, 1)) for t in _times(rng, n, 5, 0.9)))


def wind(rng: np.random.Generator, n: int) -> np.ndarray:
    """Low noise in slow gusts with a whistling edge."""
    gust = 0.15 + np.clip(np.interp(_time(n), np.arange(0, 60, 0.5), rng.normal(0.4, 0.4, 120)), 0, 1.2)
    return gust * _noise(rng, n, 90, 420) + 0.25 * gust**3 * _noise(rng, n, 700, 900)


def engine(rng: np.random.Generator, n: int) -> np.ndarray:
    """Firing pulses at a wandering rate, with the harmonics of an exhaust pipe."""
    speed = 34 + 14 * np.interp(_time(n), np.arange(0, 60, 0.6), rng.uniform(0, 1, 100))
    phase = 2 * np.pi * np.cumsum(speed) / RATE
    tone = sum(np.sin(k * phase + k * k) / k**0.7 for k in range(1, 14))
    return (tone + 0.4 * _noise(rng, n, 100, 1200) * (1 + np.sin(phase))) * (speed / 48) ** 2


def footsteps(rng: np.random.Generator, n: int) -> np.ndarray:
    """Heel thud and sole scuff, twice a second."""

    def step() -> np.ndarray:
        thud = _modes([75, 120, 210], [0.05, 0.04, 0.02], [1, 0.7, 0.4], RATE // 3)
        scuff = _noise(rng, RATE // 3, 900, 3500) * np.exp(-((_time(RATE // 3) - 0.09) ** 2) / 0.0008)
        return thud + 0.12 * scuff

    return _scatter(n, ((t, step() * rng.uniform(0.6, 1)) for t in _times(rng, n, 2.0, 0.1)))


def birds(rng: np.random.Generator, n: int) -> np.ndarray:
    """Whistled syllables that sweep between 2.5 and 5.5 kHz."""

    def syllable() -> np.ndarray:
        m = int(RATE * rng.uniform(0.06, 0.16))
        sweep = np.linspace(rng.uniform(2500, 5500), rng.uniform(2500, 5500), m)
        return np.hanning(m) * np.sin(2 * np.pi * np.cumsum(sweep) / RATE)

    return _scatter(n, ((t, syllable()) for t in _times(rng, n, 5, 0.95)))


def rain(rng: np.random.Generator, n: int) -> np.ndarray:
    """Very many small impacts, in showers."""
    shower = np.clip(np.interp(_time(n), np.arange(0, 60, 0.4), rng.normal(0.6, 0.35, 150)), 0.1, None)
    impacts = (rng.uniform(size=n) < 0.02 * shower) * rng.standard_normal(n)
    return np.convolve(impacts, np.exp(-np.arange(24) / 5.0) * (-1.0) ** np.arange(24), "same")


def clock_ticks(rng: np.random.Generator, n: int) -> np.ndarray:
    """An escapement: tick and tock differ in pitch; four a second."""
    ticks = [_modes([2100 * s, 3900 * s], [0.006, 0.004], [1, 0.6], RATE // 8) for s in (1.0, 0.86)]
    return _scatter(n, ((t, ticks[i % 2]) for i, t in enumerate(_times(rng, n, 4.0, 0.0))))


def drum(rng: np.random.Generator, n: int) -> np.ndarray:
    """A round membrane: ratios 1, 1.593, 2.136, 2.296, 2.653, with a slap of the stick."""

    def beat() -> np.ndarray:
        pitches = 110 * np.array([1, 1.593, 2.136, 2.296, 2.653])
        body = _modes(pitches, [0.18, 0.1, 0.08, 0.06, 0.05], [1, 0.6, 0.4, 0.3, 0.3], RATE // 2)
        return body + 0.5 * _noise(rng, RATE // 2, 500, 4000) * np.exp(-_time(RATE // 2) / 0.012)

    return _scatter(n, ((t, beat() * rng.uniform(0.4, 1)) for t in _times(rng, n, 3.2, 0.6)))


def flute(rng: np.random.Generator, n: int) -> np.ndarray:
    """A blown pipe: few harmonics, breath noise and vibrato, note after note."""

    def note() -> np.ndarray:
        m, frequency = int(RATE * rng.uniform(0.3, 0.6)), 523 * 2 ** (rng.choice([0, 2, 4, 7, 9]) / 12)
        t = _time(m)
        phase = 2 * np.pi * frequency * (t + 0.0008 * np.sin(2 * np.pi * 5.5 * t))
        tone = np.sin(phase) + 0.25 * np.sin(2 * phase) + 0.08 * np.sin(3 * phase)
        return np.hanning(m) ** 0.5 * (tone + 0.08 * _noise(rng, m, frequency, 4 * frequency))

    return _scatter(n, ((t, note()) for t in _times(rng, n, 1.7, 0.3)))


def bouncing_ball(rng: np.random.Generator, n: int) -> np.ndarray:
    """Impacts that come faster and softer: each flight keeps 0.8 of the speed."""
    knock = _modes([420, 960, 1500], [0.02, 0.012, 0.008], [1, 0.6, 0.3], RATE // 6)
    events, t = [], rng.uniform(0, 0.2)
    while t < n / RATE:
        speed = 1.0
        while speed > 0.12 and t < n / RATE:
            events.append((t, speed * knock))
            t += 0.45 * speed
            speed *= 0.8
        t += 0.35
    return _scatter(n, events)


def hand_saw(rng: np.random.Generator, n: int) -> np.ndarray:
    """Strokes to and fro: noise chopped by the teeth, the pull louder than the push."""
    phase = 2 * np.pi * 1.4 * _time(n) + rng.uniform(0, 6)
    stroke = np.clip(np.sin(phase), 0, None) + 0.45 * np.clip(-np.sin(phase), 0, None)
    teeth = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * np.cumsum(60 + 110 * np.abs(np.cos(phase))) / RATE))
    return stroke * teeth * _noise(rng, n, 1200, 5000)


def surf(rng: np.random.Generator, n: int) -> np.ndarray:
    """Waves on a beach: a swell of wide noise that breaks and draws back."""
    waves = ((t, np.clip(_time(2 * RATE) / 0.5, 0, 1) * np.exp(-_time(2 * RATE) / 0.55)) for t in _times(rng, n, 0.8))
    swell = 0.08 + _scatter(n, waves)
    return swell * (_noise(rng, n, 150, 900) + 0.7 * swell * _noise(rng, n, 1500, 6500))


def crickets(rng: np.random.Generator, n: int) -> np.ndarray:
    """Bursts of three pulses on a 4.6 kHz carrier."""
    pulse = np.hanning(int(0.016 * RATE)) * np.sin(2 * np.pi * 4600 * _time(int(0.016 * RATE)))
    gap = np.zeros(int(0.012 * RATE))
    chirp = np.concatenate([pulse, gap, pulse, gap, pulse])
    return _scatter(n, ((t, chirp * rng.uniform(0.5, 1)) for t in _times(rng, n, 2.6, 0.25)))


MODELS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    plucked_string, struck_bar, bell, water_drops, wind, engine, footsteps, birds,
    rain, clock_ticks, drum, flute, bouncing_ball, hand_saw, surf, crickets,
)  # fmt: skip
