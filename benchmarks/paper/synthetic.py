"""One random 3x3 convolution at a time: what each method's layer misses, against its speed-up.

    python benchmarks/paper/synthetic.py               (two minutes on one core; no data needed)

The paper's comparison with channel decomposition on synthetic data (He et al., arXiv 1910.09455,
section 4), with this project's methods beside the paper's. Kernels are of independent normal
weights, with 64 -> 64, 64 -> 128 and 128 -> 64 channels. Inputs are the im2col rows of random maps,
without padding at the borders:

- white: every pixel of every channel is an independent normal number;
- correlated: white maps smoothed along both axes (with 1 4 6 4 1, over 16), their channels of
  variances falling as 1/k then mixed by a random rotation, as one finds it inside of networks.

Each method fits on the moments of 16,384 rows, or 32 times as many as the kernel has unknowns (as
`tfdwd.decompose` takes them), and is judged on 16,384 rows of other maps: the relative error is the
variance of the response that is missed, over that of the response, 0..1. The speed-up is
theoretical: the regular convolution's MACs over the stack's, at stride 1. It is no ratio of times.
Channel decomposition and the bottleneck are as wide as the separable stack's MACs of that rank
allow. Means, lowest and highest of three seeds.

Expected: on white inputs all separable methods are alike, 0.81 to 0.84 at rank 1, and none is good,
since a random kernel has no structure: there is nothing to gain beyond the SVD, and fitting to the
noise of the moments even costs joint up to a point. Channel decomposition is ahead of them where
the layer widens. On correlated inputs the SVD, which knows nothing of them, is worst (about 0.8 at
rank 1), channel decomposition misses 0.48 to 0.59, the paper's sequential method 0.33 to 0.35, and
joint 0.27 to 0.31. The bottleneck is best at these ranks.

Writes synthetic.csv, with the columns of HEADERS, and synthetic.png beside this file.
"""

import csv
import itertools
import pathlib
import statistics
from collections.abc import Callable

import numpy as np

from tfdwd import blas, costs, factorize, reporting
from tfdwd.calibration import Moments

HERE = pathlib.Path(__file__).parent
SHAPES = [(64, 64), (64, 128), (128, 64)]
INPUTS = ("white", "correlated")
RANKS = (1, 2, 3, 4)
SEEDS = 3
TAPS, PIXELS = 9, 18  # 16 * 16 output positions on a map
HEADERS = [
    "inputs", "c", "n", "rank", "method", "size", "speed-up", "error", "lowest", "highest"
]  # fmt: skip


def solvers(c: int, n: int, rank: int) -> dict[str, tuple[int, int, Callable]]:
    """For each method its rank, width or filters; its MACs per position; and the solver."""
    macs = costs.separable_macs(c, TAPS, n, rank)
    width = macs // costs.bottleneck_macs(c, TAPS, n, 1)
    filters = macs // costs.channel_macs(c, TAPS, n, 1)
    return {
        "svd": (rank, macs, lambda target: factorize.svd(target.kernel, rank)),
        "gsvd": (rank, macs, lambda target: factorize.gsvd(target, rank)),
        "sequential": (rank, macs, lambda target: factorize.sequential(target, rank)),
        "joint": (rank, macs, lambda target: factorize.joint(target, rank)),
        "channel": (
            filters,
            costs.channel_macs(c, TAPS, n, filters),
            lambda target: factorize.channel(target, filters),
        ),
        "bottleneck": (
            width,
            costs.bottleneck_macs(c, TAPS, n, width),
            lambda target: factorize.bottleneck(target, width),
        ),
    }


class Problem:
    """One random layer: moments to fit to, and rows to be judged on."""

    def __init__(self, inputs: str, c: int, n: int, seed: int) -> None:
        self.inputs, self.c = inputs, c
        self.source = np.random.default_rng((seed, c, n, INPUTS.index(inputs)))
        self.kernel = self.source.normal(size=(c, TAPS, n))
        rotation = np.linalg.qr(self.source.normal(size=(c, c)))[0]
        self.mixing = (rotation / np.sqrt(np.arange(1, c + 1))).T
        moments = Moments.empty(np.zeros(c * TAPS), np.zeros(n))
        while moments.count < max(16384, 32 * c * TAPS):
            moments.add_rows(*self.rows())
        self.target = factorize.target(factorize.gram(moments.xx), moments.xy, self.kernel)
        x, y = zip(*(self.rows() for _ in range(4)), strict=True)
        self.x, self.y = np.concatenate(x), np.concatenate(y)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """4,096 rows: inputs (rows, c * taps), channel-major, and responses (rows, n)."""
        smoothed = self.inputs == "correlated"
        size = PIXELS + 4 * smoothed
        maps = self.source.normal(size=(16, size, size, self.c)).astype(np.float32)
        if smoothed:
            for axis in (1, 2):
                parts = (
                    np.take(maps, range(start, start + PIXELS), axis) * weight
                    for start, weight in enumerate((1, 4, 6, 4, 1))
                )
                maps = np.sum(list(parts), axis=0) / 16
            maps = maps @ self.mixing.astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(maps, (3, 3), axis=(1, 2))
        x = windows.reshape(-1, self.c * TAPS)
        return x, x @ self.kernel.reshape(self.c * TAPS, -1).astype(np.float32)

    def error(self, stack: factorize.Stack) -> float:
        """Relative error on the rows that were not fitted."""
        return float((self.y - stack.apply(self.x)).var(axis=0).sum() / self.y.var(axis=0).sum())


def measure(inputs: str, c: int, n: int, ranks: tuple[int, ...], seeds: int) -> list[list[str]]:
    """Rows of the table for one kind of layer."""
    cases = [(rank, name) for rank in ranks for name in solvers(c, n, rank)]
    found: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for seed in range(seeds):
        with (
            blas.one_thread()
        ):  # where another process takes a core, two are a hundred times slower
            problem = Problem(inputs, c, n, seed)
            for rank, name in cases:
                _, _, solve = solvers(c, n, rank)[name]
                found[rank, name].append(problem.error(solve(problem.target)))
    rows = []
    for (rank, name), errors in found.items():
        size, macs, _ = solvers(c, n, rank)[name]
        figures = statistics.mean(errors), min(errors), max(errors)
        rows.append([
            inputs, str(c), str(n), str(rank), name, str(size), f"{c * TAPS * n / macs:.2f}",
            *(f"{figure:.4f}" for figure in figures),
        ])  # fmt: skip
    return rows


def plot(rows: list[list[str]], path: pathlib.Path) -> None:
    """Error against speed-up: a panel for each kind of layer, a line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(INPUTS), len(SHAPES), figsize=(9, 5.6), sharex=True, sharey="row", layout="constrained"
    )
    methods = dict.fromkeys(row[4] for row in rows)
    for axes, (inputs, (c, n)) in zip(panels.flat, itertools.product(INPUTS, SHAPES), strict=True):
        for marker, method in zip("sv^oxD", methods, strict=True):
            own = [row for row in rows if row[:3] == [inputs, str(c), str(n)] and row[4] == method]
            points = [(float(row[6]), float(row[7])) for row in own]
            axes.plot(*zip(*points, strict=True), marker=marker, label=method, markersize=4)
        axes.set_title(f"{inputs} inputs, {c} to {n} channels", fontsize=9)
        axes.set_yscale("log" if inputs == "correlated" else "linear")
        axes.grid(alpha=0.3, which="both")
    panels[0, 0].legend(fontsize=8)
    figure.supxlabel("theoretical speed-up: MACs of the regular convolution over the stack's")
    figure.supylabel("relative error on new rows")
    figure.savefig(path, dpi=130)


def main() -> None:
    rows = []
    for inputs, (c, n) in itertools.product(INPUTS, SHAPES):
        rows += measure(inputs, c, n, RANKS, SEEDS)
        print(f"{inputs}, {c} to {n} channels: done", flush=True)
    with open(HERE / "synthetic.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADERS, *rows])
    plot(rows, HERE / "synthetic.png")
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
