"""What belongs into the recipe of `tfdwd.finetune`: its defaults, and what else was tried.

    python benchmarks/recipe.py                          (everything, three seeds: a day)
    python benchmarks/recipe.py resnet8 "defaults" "rate 0.001"
    python benchmarks/recipe.py --students               (only decomposes; 5 minutes)

Students with stack="auto" of the ResNet-8 of MLPerf Tiny, of the demo's network and of the VGG-like
one of plan_networks.py, fine-tuned against their originals on the 1,024 images (the demo: 512) that
they were decomposed on, without labels but where the way says so. Each way differs from the
defaults by what it is called; see WAYS. Those of "no features" learn by the answers alone. Top-1 is
that on other training images, 4,061 of the ResNet-8, 1,536 of the demo, 4,096 of the last one: no
test image is used. Seeds are of the order of the images, of which are held back and how they are
changed. Writes recipe.csv beside this file, a row for each run, which are not run again; seed by
seed, so that it may end at any time; and from it recipe_means.csv, where "points" are those above
the defaults, with or without features alike, and the same seeds. Students are kept in build/recipe,
and once they are there, training also runs with KERAS_BACKEND=jax, all ways but the one that
decomposes in between; "backend" says which it was. Delete build/recipe when decomposition has
changed. Needs TFDWD_DATA.
"""

import dataclasses
import itertools
import os
import pathlib
import statistics
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import folding
import keras
import numpy as np
import plan_networks
from plan_networks import cifar10

import tfdwd
from tfdwd import factorize, files, reporting
from tfdwd.training import finetuning, losses
from tfdwd.training.augmentation import Moves

HERE = pathlib.Path(__file__).resolve().parent
TABLE, BUILD = HERE / "recipe.csv", HERE.parent / "build" / "recipe"
HEADERS = ["network", "rank", "way", "seed", "before", "after", "minutes", "backend"]
MEANS = HERE / "recipe_means.csv"
MEAN_HEADERS = ["network", "rank", "way", "seeds", "before", "after", "lowest", "highest", "points"]
OTHERS = 4096
RANKS, SEEDS = (1, 2), (0, 1, 2)
ESTIMATES = 300  # batches
PLAIN = "no features, "  # what the names of ways begin with that learn by the answers alone


Images = tuple[np.ndarray, np.ndarray]  # and their labels


@dataclasses.dataclass(frozen=True)
class Case:
    """A student to be fine-tuned.

    Attributes:
      name: of its original, see NETWORKS.
      model: its original.
      images: what it was decomposed on, (count, height, width, channels), and their labels.
      rank: that it was decomposed with.
      seed: of fine-tuning.
      features: as `tfdwd.finetune` takes them.
    """

    name: str
    model: keras.Model
    images: Images
    rank: int
    seed: int
    features: str | None = "auto"

    def student(self, equal: bool = True) -> keras.Model:
        """The decomposed student, from build/, or made now.

        Args:
          equal: its factors are of about the same size; else as large as the solvers left them.
        """
        path = BUILD / f"{self.name}_{self.rank}{'' if equal else '_unequal'}.keras"
        if not path.exists():
            sized = factorize.of_equal_size if equal else lambda stack: stack
            with unittest.mock.patch.object(factorize, "of_equal_size", sized):
                student = tfdwd.decompose(self.model, self.images[0], rank=self.rank, stack="auto")
            BUILD.mkdir(parents=True, exist_ok=True)
            files.save_model(tfdwd.flatten(student), path)
        return keras.models.load_model(path, compile=False)

    def epochs(self, part: float) -> int:
        """A part of those that are the default of `finetune`."""
        return round(part * finetuning._EPOCHS / (0.9 * len(self.images[0])) ** 0.5)


def resnet8() -> tuple[keras.Model, Images, Images]:
    train, _ = common.cifar10()
    return common.resnet8(), *_parted(train, 1024)


def demo() -> tuple[keras.Model, Images, Images]:
    train, _ = common.fashion()
    return common.shufflenet(), *_parted(train, 512)


def vgg() -> tuple[keras.Model, Images, Images]:
    images, labels = cifar10.load("train")
    few, _ = _parted((images[: -cifar10.HELD_OUT], labels[: -cifar10.HELD_OUT]), 1024)
    others, _ = _parted(cifar10.split(32, 0).held_out, OTHERS)
    return plan_networks.trained("vgg"), few, others


def _parted(images: Images, count: int) -> tuple[Images, Images]:
    """The first ones and the rest."""
    return tuple(part[:count] for part in images), tuple(part[count:] for part in images)


NETWORKS = {"resnet8": resnet8, "demo": demo, "vgg": vgg}


def _tuned(case: Case, student: keras.Model, labels: bool = False, **options: Any) -> keras.Model:
    data = case.images if labels else case.images[0]
    options = {"features": case.features, "seed": case.seed} | options
    tfdwd.finetune(student, data, teacher=case.model, **options)
    return student


def _with(**options: Any) -> Callable[[Case], keras.Model]:
    """By other options of `finetune`."""
    return lambda case: _tuned(case, case.student(), **options)


def _moved(**moves: Any) -> Callable[[Case], keras.Model]:
    """By moves that are the same in all epochs."""

    def made(case: Case) -> keras.Model:
        source = np.random.default_rng(case.seed)
        height, width = case.images[0].shape[1:3]
        shifted = Moves(mirrors=True, shifts=(height // 8, width // 8), **moves)
        return _with(augment=lambda batch: shifted(batch, source))(case)

    return made


def _reestimated(case: Case) -> keras.Model:
    """With batch norms that see the images once more, not augmented, when all else is trained."""
    student = _with()(case)
    source = np.random.default_rng(case.seed)
    for _ in range(ESTIMATES):  # the moving averages of Keras hold some hundred batches
        student(source.choice(case.images[0], 64), training=True)
    return student


def _branched(case: Case) -> keras.Model:
    """With branches while it trains."""
    student = folding.branched(case.student(), case.images[0][:256])
    return folding.folded(_tuned(case, student))


def _cut_down(case: Case) -> keras.Model:
    """Of one rank more for the first half of the epochs, then decomposed anew."""
    options = {"rank": case.rank + 1, "stack": "auto"}
    larger = tfdwd.flatten(tfdwd.decompose(case.model, case.images[0], **options))
    larger = folding.merged(case.model, _tuned(case, larger, epochs=case.epochs(0.5)))
    student = tfdwd.decompose(larger, case.images[0], **(options | {"rank": case.rank}))
    return _tuned(case, tfdwd.flatten(student), epochs=case.epochs(0.5))


def _at(temperature: float) -> Callable[[Case], keras.Model]:
    """With the teacher's answers softened less or more."""

    def made(case: Case) -> keras.Model:
        with unittest.mock.patch.object(losses, "_TEMPERATURE", temperature):
            return _with()(case)

    return made


def _as_values(case: Case) -> keras.Model:
    """Without their softmaxes, and nobody says that these are logits."""
    teacher, student = map(_without_softmax, (case.model, case.student()))
    return _tuned(dataclasses.replace(case, model=teacher), student)


def _without_softmax(model: keras.Model) -> keras.Model:
    logits = keras.models.clone_model(model)
    logits.set_weights(model.get_weights())
    logits.layers[-1].activation = keras.activations.linear
    return logits


# By what each is called: what gives the trained student.
WAYS: dict[str, Callable[[Case], keras.Model]] = {
    "defaults": _with(),
    "no augmentation": _with(augment=None),
    "no mixup": _moved(),
    "mixed to the end": _moved(mixes=True),
    "not softened": _at(1.0),
    "temperature of 4": _at(4.0),
    "rate 0.0005": _with(learning_rate=5e-4),
    "rate 0.001": _with(learning_rate=1e-3),
    "rate 0.003": _with(learning_rate=3e-3),  # of the defaults, with features
    "rate 0.006": _with(learning_rate=6e-3),
    "batches of 32": _with(batch_size=32),
    "batches of 128": _with(batch_size=128),
    "half of the epochs": lambda case: _with(epochs=case.epochs(0.5))(case),
    "twice the epochs": lambda case: _with(epochs=case.epochs(2))(case),
    "averaged weights": _with(ema=0.99),
    "features weigh 4": _with(features_weight=4.0),
    "features weigh 16": _with(features_weight=16.0),  # of the defaults where maps are near
    "features weigh 64": _with(features_weight=64.0),
    "features of the replaced layers": _with(features="replaced"),
    "labels, too": _with(labels=True, labels_weight=0.5),
    "no weight decay": _with(weight_decay=0.0),
    "frozen batch norms": _with(freeze_batch_norm=True),
    "batch norms estimated again": _reestimated,
    "sgd, rate 0.05": _with(optimizer="sgd", learning_rate=0.05),
    "nothing held back": _with(validation=None),
    "branches, folded": _branched,
    "one rank more, cut down": _cut_down,
    "logits as values": _as_values,
    "factors of unequal size": lambda case: _tuned(case, case.student(equal=False)),
}


WAYS |= {f"{PLAIN}{name}": way for name, way in WAYS.items() if "features" not in name}


def runs(name: str, rank: int, seed: int, ways: list[str]) -> Iterator[list[str]]:
    """A row for each way."""
    model, few, others = NETWORKS[name]()
    case = Case(name, model, few, rank, seed)
    before = tfdwd.evaluate(case.student(), others, batch_size=256).top1
    for way in ways:
        began = time.perf_counter()
        features = None if way.startswith(PLAIN) else "auto"
        student = WAYS[way](dataclasses.replace(case, features=features))
        minutes = (time.perf_counter() - began) / 60
        after = tfdwd.evaluate(student, others, batch_size=256).top1
        yield [
            name, str(rank), way, str(seed), f"{before:.4f}", f"{after:.4f}", f"{minutes:.1f}",
            keras.backend.backend(),
        ]  # fmt: skip


def means(rows: list[list[str]]) -> Iterator[list[str]]:
    """Over the seeds, network by network."""
    after = {tuple(row[:4]): float(row[5]) for row in rows}
    found = {tuple(row[:3]): float(row[4]) for row in rows}
    places = [list(NETWORKS), [str(rank) for rank in RANKS], list(WAYS)]
    for key in sorted(found, key=lambda k: [p.index(x) for p, x in zip(places, k, strict=True)]):
        name, rank, way = key
        own = {k[3]: value for k, value in after.items() if k[:3] == key}
        rival = f"{PLAIN}defaults" if way.startswith(PLAIN) else "defaults"
        rivals = {seed: after.get((name, rank, rival, seed)) for seed in own}
        points = [100 * (own[seed] - other) for seed, other in rivals.items() if other]
        yield [
            *key, str(len(own)), f"{found[key]:.4f}", f"{statistics.mean(own.values()):.4f}",
            f"{min(own.values()):.4f}", f"{max(own.values()):.4f}",
            f"{statistics.mean(points):+.1f}" if points else "",
        ]  # fmt: skip


def main(names: list[str], ways: list[str]) -> None:
    rows = common.read_rows(TABLE)
    done = {tuple(row[:4]) for row in rows}
    for rank, seed, name in itertools.product(RANKS, SEEDS, names):
        left = [way for way in ways if (name, str(rank), way, str(seed)) not in done]
        for row in runs(name, rank, seed, left) if left else ():
            print(*row, sep=", ", flush=True)
            rows.append(row)
            common.write_rows(TABLE, HEADERS, rows)
            common.write_rows(MEANS, MEAN_HEADERS, means(rows))
    print(reporting.table(MEAN_HEADERS, common.read_rows(MEANS)))


if __name__ == "__main__":
    given = sys.argv[1:]
    if given == ["--students"]:
        for name, rank in itertools.product(NETWORKS, RANKS):
            model, few, _ = NETWORKS[name]()
            case = Case(name, model, few, rank, seed=0)
            print(name, rank, *(case.student(equal).count_params() for equal in (True, False)))
    else:
        main(
            [name for name in given if name in NETWORKS] or list(NETWORKS),
            [name for name in given if name in WAYS] or list(WAYS),
        )
