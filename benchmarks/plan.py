"""Planned students beside uniform ones: top-1 at the same measured time; foretold and come true.

    python benchmarks/plan.py                       (all five networks; two hours on two cores)
    python benchmarks/plan.py resnet8 demo
    python benchmarks/plan.py --busy                (the ResNet-8 beside two programs; 20 minutes)
    python benchmarks/plan.py --draw                (plan.png anew from plan.csv)

For the ResNet-8 of MLPerf Tiny, the demo's network and the three of plan_networks.py, on which
nothing was tuned, in float32 and in int8: decomposes with every uniform rank from 1 to 3 of either
stack, times each .tflite file beside the original's, and plans for the time of each rank of
separable stacks that is faster. "best uniform" is, of all uniform students that took at most 3 %
more time than the planned one, that of the highest top-1 on the test images: 1,017 of the
ResNet-8 (a standard error of one point), 4,000 of the demo (half a point), 10,000 of the others (a
third). No fine-tuning, no labels; 1,024 calibration images (the demo: 512). Times are parts of the
original's, which is timed beside them: milliseconds that were taken minutes apart differ by a third
on a virtual machine. Both files are opened 40 times; those openings count in which the original was
about as quick as ever, as where nothing else runs, and "low" and "high" hold four fifths of them.
"off by %" is the time that the plan says against the one that came later; the predicted loss is the
sum over the layers, the measured one that of the decomposed student on images held back by the
plan, both in nats.

--busy plans three times in a row for half of the time, first on the machine as it is, then beside
two programs that keep two cores busy, and times and scores the students when they are gone. Writes
plan.csv or plan_busy.csv beside this file, whose rows of the same networks are replaced. Needs
TFDWD_DATA.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import plan_networks
from plan_networks import cifar10

import tfdwd
from tfdwd import reporting, times

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE / "plan.csv"
PRECISIONS = {"none": "float32", "int8": "int8"}
SAME_TIME = 1.03
OPENINGS = 40  # of both files: where they lie in memory, and what shares the processor, counts
HEADERS = [
    "network", "precision", "time of", "time", "low", "high", "planned", "best uniform", "its time",
    "its top-1", "points more", "plan says", "off by %", "predicted loss", "measured loss",
    "agreement",
]  # fmt: skip
BUSY_HEADERS = ["network", "machine", "planned", "time", "low", "high", "top-1", "plan says"]


def resnet8():
    (images, _), test = common.cifar10()
    return common.resnet8(), images[:1024], test


def demo():
    (images, _), test = common.fashion()
    return common.shufflenet(), images[:512], test


def trained(name):
    return plan_networks.trained(name), plan_networks.calibration(), cifar10.test(32)


NETWORKS = {
    "resnet8": resnet8,
    "demo": demo,
    **{name: lambda name=name: trained(name) for name in plan_networks.NETWORKS},
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A student's file on the test images, and beside the original's.

    Attributes:
      time: part of the original's: the geometric mean over those openings of both files in which
        the original was about as quick as ever.
      low, high: a tenth of these are below, a tenth above.
    """

    top1: float
    time: float
    low: float
    high: float


def measured(model, student, images, precision, test) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        paths = {"original": f"{folder}/original.tflite", "student": f"{folder}/student.tflite"}
        for network, path in ((model, paths["original"]), (student, paths["student"])):
            tfdwd.export(network, path, quantize=precision, data=images[:256])
        timings = [tfdwd.benchmark(paths, rounds=5).timings for _ in range(OPENINGS)]
        openings = [
            (original.median_ms, times.Ratio(own.speed_up, own.speed_up_low, own.speed_up_high))
            for original, own in timings
        ]
        ratios, _ = times.quick(openings, math.inf, OPENINGS // 4)
        parts = [1 / ratio.speed_up for ratio in ratios]
        low, *_, high = statistics.quantiles(parts, n=10)
        top1 = tfdwd.evaluate(paths["student"], test).top1
        return Measured(top1, statistics.geometric_mean(parts), low, high)


def compared(name: str, precision: str, cache: str) -> Iterator[list[str]]:
    """Rows of the table for one network in one precision; its plans share times in a cache."""
    model, images, test = NETWORKS[name]()
    uniform = {}
    for stack in ("separable", "bottleneck"):
        for rank in (1, 2, 3):
            student = tfdwd.decompose(model, images, rank=rank, stack=stack)
            uniform[f"{stack} {rank}"] = measured(model, student, images, precision, test)
            print(f"{name} {precision} {stack} {rank}: {uniform[f'{stack} {rank}']}", flush=True)
    for target in ("separable 1", "separable 2", "separable 3"):
        part = uniform[target].time
        if part >= 1:  # who would want one that is slower
            continue
        plan = tfdwd.plan(model, images, quantize=precision, latency=round(part, 4), cache=cache)
        student = tfdwd.decompose(model, images, rank=plan)
        own = measured(model, student, images, precision, test)
        rivals = {key: one for key, one in uniform.items() if one.time <= SAME_TIME * own.time}
        best = max(rivals, key=lambda key: rivals[key].top1, default="")
        rival, says = rivals.get(best), plan.ms_after / plan.ms_before
        yield [
            name, PRECISIONS[precision], target, f"{own.time:.3f}", f"{own.low:.3f}",
            f"{own.high:.3f}", f"{own.top1:.4f}", best, f"{rival.time:.3f}" if rival else "",
            f"{rival.top1:.4f}" if rival else "",
            f"{100 * (own.top1 - rival.top1):+.1f}" if rival else "", f"{says:.3f}",
            f"{100 * (says / own.time - 1):+.1f}", f"{plan.error:.5f}", f"{plan.loss:.5f}",
            f"{plan.agreement:.4f}",
        ]  # fmt: skip


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Two programs that each keep a core busy."""
    program = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(program) for _ in range(2)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def beside_others() -> Iterator[list[str]]:
    model, images, test = resnet8()
    for machine, around in (("quiet", contextlib.nullcontext), ("busy", busy)):
        for number in (1, 2, 3):
            with around(), tempfile.TemporaryDirectory() as folder:
                try:
                    cache = f"{folder}/latency.json"
                    plan = tfdwd.plan(model, images, latency=0.5, cache=cache)
                except tfdwd.Error as error:
                    yield ["resnet8", machine, str(number), "", "", "", "", f"refused: {error}"]
                    continue
            student = tfdwd.decompose(model, images, rank=plan)
            own = measured(model, student, images, "none", test)
            yield [
                "resnet8", machine, str(number), f"{own.time:.3f}", f"{own.low:.3f}",
                f"{own.high:.3f}", f"{own.top1:.4f}",
                f"{plan.ms_after / plan.ms_before:.3f} of the time",
            ]  # fmt: skip


def draw() -> None:
    """plan.png: what plans say against what came, of time and of loss."""
    import matplotlib.pyplot as plt

    rows = common.read_rows(TABLE)
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    pairs = {
        "part of the original's time": ("plan says", "time"),
        "loss in nats": ("predicted loss", "measured loss"),
    }
    for axis, (title, columns) in zip(axes, pairs.items(), strict=True):
        for name in dict.fromkeys(row[0] for row in rows):
            own = [[float(r[HEADERS.index(c)]) for c in columns] for r in rows if r[0] == name]
            axis.loglog(*zip(*own, strict=True), "o", label=name)
        ends = [
            min(axis.get_xlim()[0], axis.get_ylim()[0]),
            max(*axis.get_xlim(), *axis.get_ylim()),
        ]
        axis.plot(ends, ends, "k:", linewidth=1)
        axis.set(title=title, xlabel=f"the plan: {columns[0]}", ylabel=columns[1])
    axes[0].legend()
    figure.savefig(HERE / "plan.png", dpi=100)


def main() -> None:
    if "--busy" in sys.argv:
        rows = []
        for row in beside_others():
            print(*row, flush=True)
            rows.append(row)
            common.write_rows(HERE / "plan_busy.csv", BUSY_HEADERS, rows)
        print(reporting.table(BUSY_HEADERS, rows))
        return
    names = [name for name in sys.argv[1:] if name != "--draw"]
    if not names and "--draw" not in sys.argv:
        names = list(NETWORKS)
    for (precision, shown), name in itertools.product(PRECISIONS.items(), names):
        rows = [row for row in common.read_rows(TABLE) if row[:2] != [name, shown]]
        with tempfile.TemporaryDirectory() as folder:
            for row in compared(name, precision, f"{folder}/latency.json"):
                print(*row, flush=True)
                rows.append(row)
                rows.sort(key=lambda row: list(NETWORKS).index(row[0]))
                common.write_rows(TABLE, HEADERS, rows)
    draw()
    print(reporting.table(HEADERS, common.read_rows(TABLE)))


if __name__ == "__main__":
    main()
