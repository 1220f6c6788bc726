"""The paper's headline on CIFAR-10: a separable network, against its regular twin decomposed.

    python benchmarks/paper/headline.py --find      (learning rates and the gap, on held-out images)
    python benchmarks/paper/headline.py             (the table; 7 hours on two quiet cores)

The abstract of He et al., arXiv 1910.09455, says: about 2 points above the separable network. Two
questions can be meant, and both are answered with E = --epochs and T = --tuned:

  A  separable for E epochs; its regular twin for E, then the twin's students for T more;
  B  the same number of epochs in all: the twin for E - T, its students for T.

So that the number of epochs, the teacher and the decomposition can be told apart, A also has a
separable network of E + T epochs and one that the regular network teaches. Students are of rank 1
and learn from labels alone; joint and auto also from the regular network. Each network of a seed is
one row of headline_NETWORK.csv: 45,000 training images, cropped and flipped at random, 10,000 test
images once.

--find trains with a seed of its own and scores on the 5,000 images held out of training: each kind
of network at learning rates twice as high in turn until the next is worse, in --trial epochs; then
regular and separable for E epochs, and joint for T. The table is worth running where the regular
network is at least 3 points better and where the students' last epochs no longer gain.

All is resumable: networks, checkpoints and found rates are kept in TFDWD_RUNS (build/ if unset),
and a second call goes on where the first was interrupted. Needs TFDWD_DATA.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cifar10
import common
import keras
from absl import app, flags, logging

import tfdwd
from tfdwd import models, reporting

HERE = pathlib.Path(__file__).parent
RUNS = pathlib.Path(os.environ.get("TFDWD_RUNS", HERE / "../../build"))
FIND_SEED = 100
STUDENTS = {
    "joint": {"method": "joint"},
    "auto": {"method": "joint", "stack": "auto"},
    "sequential": {"method": "sequential"},
    "svd": {"method": "svd"},
    "channel": {"method": "channel"},
}
TAUGHT = ("joint", "auto")
HEADERS = ["question", "network", "taught by", "seed", "epochs", "MMACs", "before", "top-1"]

_NETWORK = flags.DEFINE_enum("network", "resnet8", ["resnet8", "shufflenet"], "the architecture")
_PIXELS = flags.DEFINE_integer("pixels", 24, "of the images after cropping, at most 32")
_EPOCHS = flags.DEFINE_integer("epochs", 20, "E")
_TUNED = flags.DEFINE_integer("tuned", 10, "T")
_TRIAL = flags.DEFINE_integer("trial", 5, "epochs of each trial of a learning rate")
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many")
_FIND = flags.DEFINE_bool("find", False, "find learning rates and the gap on held-out images")


# ---------------------------------------------------------------------- networks


def resnet8(conv: str, shape: tuple[int, int, int]) -> keras.Model:
    """The ResNet-8 of MLPerf Tiny; ``separable`` has a depthwise + pointwise pair for each 3x3."""
    layers = keras.layers

    def norm_after(x: keras.KerasTensor, layer: keras.layers.Layer) -> keras.KerasTensor:
        return layers.BatchNormalization()(layer(x))

    def spatial(x: keras.KerasTensor, channels: int, stride: int) -> keras.KerasTensor:
        options = {"padding": "same", "use_bias": False}
        if conv == "regular":
            return norm_after(x, layers.Conv2D(channels, 3, stride, **options))
        x = norm_after(x, layers.DepthwiseConv2D(3, stride, **options))
        return norm_after(x, layers.Conv2D(channels, 1, **options))

    inputs = keras.Input(shape, name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    # Both read the image with a regular convolution: a depthwise one of 3 channels says little.
    x = norm_after(x, layers.Conv2D(16, 3, padding="same", use_bias=False))
    x = layers.ReLU()(x)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        branch = layers.ReLU()(spatial(x, channels, stride))
        branch = spatial(branch, channels, 1)
        if stride > 1:
            x = norm_after(x, layers.Conv2D(channels, 1, stride, use_bias=False))
        x = layers.ReLU()(layers.Add()([x, branch]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name=f"resnet8_{conv}")


def shufflenet(conv: str, shape: tuple[int, int, int]) -> keras.Model:
    """ShuffleNet V2 0.5x for small images."""
    return models.ShuffleNetV2(0.5, conv=conv, input_shape=shape, classes=10, stem="small")


# ---------------------------------------------------------------------- training


class Experiment:
    """The networks of one seed: made, trained, and kept in a folder."""

    def __init__(self, seed: int, folder: pathlib.Path, rates: dict[str, float]) -> None:
        self.seed, self.folder, self.rates = seed, folder / f"seed-{seed}", rates
        self.images = cifar10.split(_PIXELS.value, seed)

    def fresh(self, conv: str) -> keras.Model:
        keras.utils.set_random_seed(self.seed)
        build = {"resnet8": resnet8, "shufflenet": shufflenet}[_NETWORK.value]
        return build(conv, (_PIXELS.value, _PIXELS.value, 3))

    def trained(
        self,
        name: str,
        make: Callable[[], keras.Model],
        epochs: int,
        rate: float,
        teacher: keras.Model | None = None,
    ) -> tuple[keras.Model, keras.Model]:
        """A network before and after training; goes on where an earlier call was interrupted."""
        return cifar10.trained(
            self.folder / f"{name}-{epochs}-{rate:g}",
            make,
            self.images.train,
            epochs=epochs,
            learning_rate=rate,
            teacher=teacher,
            labels_weight=0.0 if teacher is None else 1.0,
            validation=self.images.held_out,
            seed=self.seed,
        )

    def network(
        self, conv: str, epochs: int, taught_by: keras.Model | None = None
    ) -> tuple[keras.Model, keras.Model]:
        """A network trained from random weights."""
        name = conv if taught_by is None else f"{conv}-taught"
        return self.trained(name, partial(self.fresh, conv), epochs, self.rates[conv], taught_by)

    def student(
        self, kind: str, regular: keras.Model, question: str, taught: bool = False
    ) -> tuple[keras.Model, keras.Model]:
        """A student of a regular network, fine-tuned."""
        return self.trained(
            f"{question}-{kind}" + ("-taught" if taught else ""),
            lambda: tfdwd.decompose(regular, self.images.calibration, rank=1, **STUDENTS[kind]),
            _TUNED.value,
            self.rates["student"],
            regular if taught else None,
        )


# ---------------------------------------------------------------------- rates and the gap


def find(folder: pathlib.Path) -> dict[str, float]:
    """Finds a learning rate for each kind of network, and prints the gap; keeps the rates."""
    rates: dict[str, float] = {}
    mine = Experiment(FIND_SEED, folder, rates)

    def score(what: str, model: keras.Model) -> float:
        top1 = tfdwd.evaluate(model, mine.images.held_out).top1
        print(f"{what}: {top1:.4f} held out", flush=True)
        return top1

    def best_rate(name: str, train: Callable[[float], keras.Model], first: float) -> float:
        """The first rate of a ladder, each twice the one before, that the next does not beat."""
        rate, top1 = first, score(f"{name} at {first:g}", train(first))
        while True:
            higher = score(f"{name} at {2 * rate:g}", train(2 * rate))
            if higher <= top1:
                return rate
            rate, top1 = 2 * rate, higher

    def from_scratch(conv: str, rate: float) -> keras.Model:
        return mine.trained(f"trial-{conv}", partial(mine.fresh, conv), _TRIAL.value, rate)[1]

    for conv, first in (("regular", 2e-3), ("separable", 4e-3)):
        rates[conv] = best_rate(conv, partial(from_scratch, conv), first)
    _, regular = mine.network("regular", _EPOCHS.value)
    _, separable = mine.network("separable", _EPOCHS.value)
    gap = score("regular", regular) - score("separable", separable)
    print(f"the gap at {_EPOCHS.value} epochs: {100 * gap:+.2f} points", flush=True)

    def tuned(rate: float) -> keras.Model:
        rates["student"] = rate
        return mine.student("joint", regular, "A")[1]

    rates["student"] = best_rate("joint", tuned, 1e-3)
    (folder / "rates.json").write_text(json.dumps(rates, indent=1))
    return rates


# ---------------------------------------------------------------------- the table


def rows_of(mine: Experiment) -> Iterator[tuple[list[str], Callable[[], tuple[keras.Model, ...]]]]:
    """What the table holds of one seed: (question, network, taught by, epochs) and its training.

    In an order in which what is there after an interruption already answers something.
    """
    whole, tuned = _EPOCHS.value, _TUNED.value

    def regular(epochs: int) -> keras.Model:
        return mine.network("regular", epochs)[1]

    yield ["A", "separable", "labels", str(whole)], lambda: mine.network("separable", whole)
    yield ["A", "regular", "labels", str(whole)], lambda: mine.network("regular", whole)
    for question, epochs in (("A", whole), ("B", whole - tuned)):
        for kind in STUDENTS:
            for taught in (False, True) if kind in TAUGHT else (False,):
                name = [question, kind, "regular, labels" if taught else "labels"]
                yield (
                    [*name, str(epochs + tuned)],
                    partial(
                        lambda kind, epochs, question, taught: mine.student(
                            kind, regular(epochs), question, taught
                        ),
                        kind,
                        epochs,
                        question,
                        taught,
                    ),
                )
        if question == "A":
            yield (
                ["A", "separable", "labels", str(whole + tuned)],
                lambda: mine.network("separable", whole + tuned),
            )
            yield (
                ["A", "separable", "regular, labels", str(whole)],
                lambda: mine.network("separable", whole, regular(whole)),
            )
    yield (
        ["B", "regular", "labels", str(whole - tuned)],
        lambda: mine.network("regular", whole - tuned),
    )


def main(_: list[str]) -> None:
    size = f"{_NETWORK.value}-{_PIXELS.value}px-{_EPOCHS.value}-{_TUNED.value}"
    folder = RUNS / f"headline-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    if _FIND.value:
        find(folder)
        return
    if not (folder / "rates.json").exists():
        raise app.UsageError(f"no learning rates in {folder}: run with --find first")
    rates = json.loads((folder / "rates.json").read_text())
    test = cifar10.test(_PIXELS.value)
    path = HERE / f"headline_{_NETWORK.value}.csv"
    done = {tuple(row[:5]): row for row in common.read_rows(path)}
    for seed in range(_SEEDS.value):
        mine = Experiment(seed, folder, rates)
        for (question, network, taught, epochs), train in rows_of(mine):
            key = (question, network, taught, str(seed), epochs)
            if key not in done:
                before, after = train()
                scores = [f"{tfdwd.evaluate(m, test).top1:.4f}" for m in (before, after)]
                macs = f"{tfdwd.costs.count(after).macs / 1e6:.2f}"
                done[key] = [*key, macs, *scores]
                common.write_rows(path, HEADERS, done.values())
            print(*done[key], flush=True)
    print(reporting.table(HEADERS, list(done.values())))


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    app.run(main)
