"""Beside a planned student what one would try instead: same time, same images, same recipe.

    python benchmarks/rivals.py                     (three networks at two times: four hours)
    python benchmarks/rivals.py resnet8
    python benchmarks/rivals.py --students          (only plans and decomposes: half an hour)
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
`tfdwd.finetune(student, images, teacher=original)`, in float32 also where the file is int8; the
last maps are learnt by those that begin near them, which no narrow network can. What does not
depend on the time is the same student in both. Top-1 is that of the .tflite files on the
test images, once, and times are taken as in plan.py. Writes rivals.csv and rivals.png beside this
file; rows that are there are not made again. Students are kept in build/rivals, and once they are
there, `Rival.tuned` also runs with KERAS_BACKEND=jax. Delete build/rivals when tfdwd has changed.
Needs TFDWD_DATA.
"""

import itertools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import plan
from narrowing import narrowed

import tfdwd
from tfdwd import files, models, reporting

HERE = pathlib.Path(__file__).resolve().parent
TABLE, BUILD = HERE / "rivals.csv", HERE.parent / "build" / "rivals"
NAMES = ("resnet8", "demo", "vgg")
HEADERS = [
    "network", "precision", "time of", "way", "MMACs", "time", "low", "high", "before", "top-1",
]  # fmt: skip
RANKS = (1, 2)
STEPS = 6  # halvings of the part of the channels
PASSED = 1.01  # of the time that a narrow network may take
WORTH_IT = 0.9  # of the original's time: who would want a student that takes more
# What gives the same student in every precision, and the method of it.
TIMELESS = {"channel": "channel", "svd": "svd", "the paper": "sequential"}
WAYS = ("planned", "planned, random weights", "narrow", "narrow, random weights", *TIMELESS)


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


class Rival(NamedTuple):
    """A student of one network at one time, made in one way; what it takes is kept in build/.

    Attributes:
      name: of its original.
      rank: of the separable student whose time it may take.
      precision: of its file.
      way: that it was made in, one of WAYS.
    """

    name: str
    rank: int
    precision: str
    way: str

    @property
    def path(self) -> pathlib.Path:
        own = [] if self.way in TIMELESS else [self.precision]
        parts = [self.name, str(self.rank), *own, *self.way.split()]
        return BUILD / ("_".join(parts).replace(",", "") + ".keras")

    def student(self) -> keras.Model:
        """From build/, or made now."""
        if not self.path.exists():
            files.save_model(tfdwd.flatten(self._made()), self.path)
        return keras.models.load_model(self.path, compile=False)

    def tuned(self) -> keras.Model:
        """The student fine-tuned, from build/ or now."""
        path = self.path.with_name(f"tuned_{self.path.name}")
        if not path.exists():
            student = self.student()
            model, images, _ = plan.NETWORKS[self.name]()
            tfdwd.finetune(student, images, teacher=model)
            files.save_model(student, path)
        return keras.models.load_model(path, compile=False)

    def row(self) -> list[str]:
        """Of the table."""
        model, images, test = plan.NETWORKS[self.name]()
        student = self.tuned()
        own = plan.measured(model, student, images, self.precision, test)
        before = tfdwd.evaluate(self.student(), test, batch_size=256).top1
        return [
            *self.key, f"{tfdwd.costs.count(student).macs / 1e6:.2f}", f"{own.time:.3f}",
            f"{own.low:.3f}", f"{own.high:.3f}", f"{before:.4f}", f"{own.top1:.4f}",
        ]  # fmt: skip

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What its row begins with."""
        return self.name, plan.PRECISIONS[self.precision], f"separable {self.rank}", self.way

    def _made(self) -> keras.Model:
        model, images, _ = plan.NETWORKS[self.name]()
        wanted = _time_wanted(self.name, self.rank, self.precision)
        if self.way in TIMELESS:
            return common.decomposed(model, images, rank=self.rank, method=TIMELESS[self.way])
        if self.way == "planned":
            budget = round(wanted, 4)
            found = tfdwd.plan(model, images, latency=budget, quantize=self.precision)
            return tfdwd.decompose(model, images, rank=found)
        if self.way == "planned, random weights":
            return _random(self._replace(way="planned").student())

        def shape(part: float) -> keras.Model:
            keras.utils.set_random_seed(0)
            return _narrow_shufflenet(part) if self.name == "demo" else narrowed(model, part)

        width = _noted(
            f"{self.name} {self.rank} {self.precision} width",
            lambda: _widest(model, images, self.precision, shape, wanted),
        )
        return narrowed(model, width, images[:256]) if self.way == "narrow" else shape(width)


def _noted(key: str, find: Callable[[], float]) -> float:
    """What is found the first time; build/ has it from then on."""
    path = BUILD / "noted.json"
    notes = json.loads(path.read_text()) if path.exists() else {}
    if key not in notes:
        notes[key] = find()
        BUILD.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, json.dumps(notes))
    return notes[key]


def _time_wanted(name: str, rank: int, precision: str) -> float:
    """Of the separable student, as part of the original's."""

    def found() -> float:
        model, images, test = plan.NETWORKS[name]()
        uniform = tfdwd.decompose(model, images, rank=rank)
        return plan.measured(model, uniform, images, precision, test).time

    return _noted(f"{name} {rank} {precision} time", found)


def rivals(names: list[str]) -> Iterator[Rival]:
    """All of some networks."""
    for rank, name, precision in itertools.product(RANKS, names, plan.PRECISIONS):
        wanted = _time_wanted(name, rank, precision)
        if wanted > WORTH_IT:
            print(f"{name} {precision}: separable {rank} takes {wanted:.3f}, left out", flush=True)
            continue
        for way in WAYS:
            if (name, way) != ("demo", "narrow"):
                yield Rival(name, rank, precision, way)


def draw() -> None:
    """rivals.png: top-1 against time, a picture for each network and precision."""
    import matplotlib.pyplot as plt

    rows = common.read_rows(TABLE)
    names, precisions = (list(dict.fromkeys(row[n] for row in rows)) for n in (0, 1))
    figure, axes = plt.subplots(
        len(names), len(precisions), figsize=(10, 3.5 * len(names)), sharex=True, sharey="row",
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for axis, key in zip(axes.flat, itertools.product(names, precisions), strict=True):
        for way in WAYS:
            points = sorted(
                (float(r[5]), float(r[9])) for r in rows if (r[0], r[1]) == key and r[3] == way
            )
            axis.plot([x for x, _ in points], [y for _, y in points], "o-", label=way)
        axis.set(title=", ".join(key), xlabel="part of the original's time", ylabel="top-1")
        axis.set_xlim(0, 1)
        axis.label_outer()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(HERE / "rivals.png", dpi=80)


def main(names: list[str]) -> None:
    rows = common.read_rows(TABLE)
    done = {tuple(row[:4]) for row in rows}
    for rival in rivals(names):
        if rival.key in done:
            continue
        rows.append(rival.row())
        print(*rows[-1], sep=", ", flush=True)
        common.write_rows(TABLE, HEADERS, rows)
    draw()
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    if sys.argv[1:] == ["--draw"]:
        draw()
    elif sys.argv[1:] == ["--students"]:
        for rival in rivals(list(NAMES)):
            print(*rival, rival.student().count_params(), flush=True)
    else:
        main(sys.argv[1:] or list(NAMES))
