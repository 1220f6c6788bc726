"""Beside a planned student what one would try instead: same time, same images, same recipe.

    python benchmarks/rivals.py                     (three networks at two times: four hours)
    python benchmarks/rivals.py resnet8
    python benchmarks/rivals.py --draw              (rivals.png anew from rivals.csv)

For the ResNet-8 of MLPerf Tiny, the demo's network and the VGG-like one of plan_networks.py, at the
times of their separable students of rank 1 and 2, in float32 and in int8, with 1,024 unlabelled
images (the demo: 512); not where that student takes more than nine tenths of the original's time:

- planned: `tfdwd.plan` for that time, then `decompose`;
- planned, random weights: the shape of that student;
- narrow: the original with fewer channels in all layers, those of the largest kernels, refitted by
  least squares (narrowing.py; not of the demo's network, whose channels are shuffled);
- narrow, random weights: that shape (the demo: its network with fewer channels);
- channel: Zhang et al., arXiv 1505.06798, at the MACs of the separable student;
- svd, the paper: the separable student by truncated SVD, and by the paper's full method.

A narrow network has as many channels as fit into the time. All are fine-tuned by
`tfdwd.finetune(student, images, teacher=original)`, in float32 also where the file is int8; what
does not depend on the time is the same student in both. Top-1 is that of the .tflite files on the
test images, once, and times are taken as in plan.py. Writes rivals.csv and rivals.png beside this
file; rows that are there are not made again. Needs TFDWD_DATA.
"""

import itertools
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import plan
from narrowing import narrowed

import tfdwd
from tfdwd import models, reporting

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE / "rivals.csv"
NAMES = ("resnet8", "demo", "vgg")
HEADERS = [
    "network", "precision", "time of", "way", "MMACs", "time", "low", "high", "before", "top-1",
    "minutes",
]  # fmt: skip
RANKS = (1, 2)
STEPS = 6  # halvings of the part of the channels
PASSED = 1.01  # of the time that a narrow network may take
WORTH_IT = 0.9  # of the original's time: who would want a student that takes more
TIMELESS = ("channel", "svd", "the paper")  # whose students are the same in every precision


def _time(model, student, images, precision: str) -> float:
    """Of a student, as part of the original's: a quick look for the choice of a width."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"original": f"{folder}/original.tflite", "student": f"{folder}/student.tflite"}
        for network, path in ((model, paths["original"]), (student, paths["student"])):
            tfdwd.export(network, path, quantize=precision, data=images[:64])
        return 1 / tfdwd.benchmark(paths, rounds=30).timings[1].speed_up


def _widest(model, images, precision: str, part_of: Callable, time_wanted: float) -> float:
    """The largest part of the channels within a time."""
    low, high = 0.1, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        fits = _time(model, part_of(middle), images, precision) <= PASSED * time_wanted
        low, high = (middle, high) if fits else (low, middle)
    return low


def _narrow_shufflenet(part: float) -> keras.Model:
    """The demo's network with this part of its channels; see benchmarks/demo/train.py."""
    stem, *stages = (max(2, round(part * n)) for n in (24, 48, 96, 192))
    return models.ShuffleNetV2(
        0.5, conv="regular", input_shape=(28, 28, 1), classes=10, stem="small", repeats=(3, 5, 3),
        channels=(stem, *(n // 2 * 2 for n in stages)), last_channels=max(8, round(part * 512)),
    )  # fmt: skip


def _random(student: keras.Model) -> keras.Model:
    keras.utils.set_random_seed(0)
    return type(student).from_config(student.get_config())


def ways(
    name: str, model, images, precision: str, rank: int, time_wanted: float
) -> dict[str, Callable[[], keras.Model]]:
    """{way: what makes the student}, cheap until it is called."""
    planned: list[keras.Model] = []

    def ours() -> keras.Model:
        budget = round(time_wanted, 4)
        found = tfdwd.plan(model, images, latency=budget, quantize=precision)
        planned.append(tfdwd.decompose(model, images, rank=found))
        return tfdwd.flatten(planned[0])

    def shape(part: float) -> keras.Model:
        keras.utils.set_random_seed(0)
        return _narrow_shufflenet(part) if name == "demo" else narrowed(model, part)

    width: list[float] = []

    def widest() -> float:
        if not width:
            width.append(_widest(model, images, precision, shape, time_wanted))
        return width[0]

    def of(method: str) -> Callable[[], keras.Model]:
        return lambda: common.decomposed(model, images, rank=rank, method=method)

    found = {
        "planned": ours,
        "planned, random weights": lambda: _random(planned[0] if planned else ours()),
        "narrow": lambda: narrowed(model, widest(), images[:256]),
        "narrow, random weights": lambda: shape(widest()),
        "channel": of("channel"),
        "svd": of("svd"),
        "the paper": of("sequential"),
    }
    if name == "demo":
        del found["narrow"]
    return found


def compared(name: str, rank: int, done: set[tuple[str, str]]) -> Iterator[list[str]]:
    """Rows of the precisions and ways that are not done yet."""
    model, images, test = plan.NETWORKS[name]()
    uniform = tfdwd.decompose(model, images, rank=rank)
    timeless: dict[str, tuple[keras.Model, float, float]] = {}
    for quantize, precision in plan.PRECISIONS.items():
        wanted = plan.measured(model, uniform, images, quantize, test).time
        if wanted > WORTH_IT:
            print(f"{name} {precision}: separable {rank} takes {wanted:.3f}, left out", flush=True)
            continue
        for way, make in ways(name, model, images, quantize, rank, wanted).items():
            if (precision, way) in done:
                continue
            student, before, minutes = timeless.get(way) or tuned(make(), model, images, test)
            if way in TIMELESS:
                timeless[way] = student, before, minutes
            own = plan.measured(model, student, images, quantize, test)
            yield [
                name, precision, f"separable {rank}", way,
                f"{tfdwd.costs.count(student).macs / 1e6:.2f}", f"{own.time:.3f}",
                f"{own.low:.3f}", f"{own.high:.3f}", f"{before:.4f}", f"{own.top1:.4f}",
                f"{minutes:.1f}",
            ]  # fmt: skip


def tuned(student: keras.Model, teacher: keras.Model, images, test):
    """The student, its top-1 before that, and how many minutes it took."""
    before = tfdwd.evaluate(student, test, batch_size=256).top1
    began = time.perf_counter()
    tfdwd.finetune(student, images, teacher=teacher)
    return student, before, (time.perf_counter() - began) / 60


def draw() -> None:
    """rivals.png: top-1 against time, a picture for each network and precision."""
    import matplotlib.pyplot as plt

    rows = common.read_rows(TABLE)
    shown = list(dict.fromkeys((row[0], row[1]) for row in rows))
    colours = {way: f"C{n}" for n, way in enumerate(dict.fromkeys(row[3] for row in rows))}
    figure, axes = plt.subplots(
        1, len(shown), figsize=(4 * len(shown), 4), layout="constrained", squeeze=False
    )
    for axis, key in zip(axes[0], shown, strict=True):
        own = [row for row in rows if (row[0], row[1]) == key]
        for way in dict.fromkeys(row[3] for row in own):
            points = sorted((float(row[5]), float(row[9])) for row in own if row[3] == way)
            axis.plot(*zip(*points, strict=True), "o-", color=colours[way], label=way)
        axis.set(title=", ".join(key), xlabel="part of the original's time", ylabel="top-1")
        axis.set_xlim(0, 1)
    axes[0][0].legend(fontsize="small")
    figure.savefig(HERE / "rivals.png", dpi=100)


def main(names: list[str]) -> None:
    rows = common.read_rows(TABLE)
    for rank, name in itertools.product(RANKS, names):
        done = {(row[1], row[3]) for row in rows if (row[0], row[2]) == (name, f"separable {rank}")}
        for row in compared(name, rank, done):
            print(*row, sep=", ", flush=True)
            rows.append(row)
            common.write_rows(TABLE, HEADERS, rows)
    draw()
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    if sys.argv[1:] == ["--draw"]:
        draw()
    else:
        main(sys.argv[1:] or list(NAMES))
