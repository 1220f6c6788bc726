"""What it costs to fit a layer's stacks, by stages, and what the quick fits of a plan lose.

    OPENBLAS_NUM_THREADS=1 python benchmarks/fitting.py          (minutes)
    OPENBLAS_NUM_THREADS=1 python benchmarks/fitting.py 64 128   (layers that read so many: seconds)

Layers of 3x3 taps as wide as those of ResNet50, 7x7 taps on 3 channels for its first one. Inputs
are smooth random maps, mixed and rectified; kernels and metrics have falling spectra. Printed are
the seconds of: factoring the moments and solving for the kernel, the quick fits of some ranks and
widths that `plan` tries, their errors, and the fits that `decompose` makes of the same ones. The
last column is the error of a quick fit over that of all rounds, the least and the greatest.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tfdwd import factorize

PARTS = (0.06, 0.13, 0.25)  # of the MACs, for the widths: some of those that a plan tries
RANKS = (1, 2, 3)


def maps(channels: int, size: int, images: int, source: np.random.Generator) -> np.ndarray:
    """Activations (images, size, size, channels): smooth, correlated and rectified."""
    x, y = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))
    frequency = (x**2 + y**2) ** 0.5 + 0.5 / size
    noise = source.normal(size=(images, channels, size, size))
    slopes = source.uniform(0.8, 2, size=(channels, 1, 1))
    fields = np.fft.ifft2(np.fft.fft2(noise) * frequency**-slopes).real
    fields /= fields.std(axis=(0, 2, 3), keepdims=True)
    mixing = source.normal(size=(channels, channels)) * np.arange(1, channels + 1) ** -0.5
    mixed = np.moveaxis(fields, 1, 3) @ mixing.T
    return np.maximum(mixed + mixed.std() / 2 * source.normal(size=channels), 0)


def falling(rows: int, columns: int, power: float, source: np.random.Generator) -> np.ndarray:
    """A random matrix whose singular values fall as a power of their number."""
    count = min(rows, columns)
    left, right = (np.linalg.qr(source.normal(size=(n, count)))[0] for n in (rows, columns))
    return (left * np.arange(1, count + 1) ** -power) @ right.T


def moments(c: int, taps: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariance of the inputs (c * q, c * q), kernel (c, q, n), metric of the outputs (n, n)."""
    source = np.random.default_rng(c)
    images = maps(c, 12 + taps, 96, source)
    patches = np.lib.stride_tricks.sliding_window_view(images, (taps, taps), axis=(1, 2))
    rows = patches.reshape(-1, c * taps * taps)[:: max(1, patches[..., 0, 0, 0].size // 12_000)]
    rows = rows - rows.mean(axis=0)
    kernel = falling(c * taps**2, n, 0.4, source).reshape(c, taps**2, n)
    root = falling(n, n, 0.5, source)
    return rows.T @ rows / len(rows), kernel, root @ root.T + np.eye(n) / n


def timed(seconds: list[float], work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    found = work()
    seconds.append(time.perf_counter() - start)
    return found


def measured(c: int, taps: int, n: int) -> tuple[list[float], list[float]]:
    """Seconds of each stage, and the quick fits' errors over those of all rounds."""
    q = taps**2
    covariance, kernel, metric = moments(c, taps, n)
    product = covariance @ kernel.reshape(c * q, n)
    widths = [max(1, int(part * c * q * n / (c + q + n))) for part in PARTS]
    seconds: list[float] = []
    target = timed(seconds, lambda: factorize.target(factorize.gram(covariance), product, kernel))
    stacks = timed(seconds, lambda: factorize.joints(target, RANKS, metric))
    narrow = timed(seconds, lambda: factorize.bottlenecks(target, widths, metric))
    quick = [*stacks.values(), *narrow.values()]
    errors = timed(seconds, lambda: factorize.errors(target, dict(enumerate(quick)), metric))
    best = timed(seconds, lambda: [factorize.joint(target, rank, metric) for rank in RANKS])
    best += timed(seconds, lambda: [factorize.bottleneck(target, w, metric) for w in widths])
    least = factorize.errors(target, dict(enumerate(best)), metric)
    return seconds, [errors[number] / least[number] for number in range(len(quick))]


def main(wanted: list[int]) -> None:
    names = ["moments", "joints", "bottlenecks", "errors", "joint", "bottleneck"]
    print(f"{'c, q, n':>12}" + "".join(f"{name:>13}" for name in names) + "  quick over all rounds")
    for c, taps, n in [(3, 7, 64), (64, 3, 64), (128, 3, 128), (256, 3, 256), (512, 3, 512)]:
        if not wanted or c in wanted:
            seconds, ratios = measured(c, taps, n)
            figures = "".join(f"{value:11.2f} s" for value in seconds)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{f'{c}, {taps**2}, {n}':>12}{figures}  {spread}", flush=True)


if __name__ == "__main__":
    main([int(width) for width in sys.argv[1:]])
