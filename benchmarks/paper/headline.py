"""The paper's headline on CIFAR-10: a separable network, against its regular twin decomposed.

    python benchmarks/paper/headline.py --find      (learning rates and the gap, on held-out images)
    python benchmarks/paper/headline.py             (the table; 15 hours on two quiet cores)

The abstract of He et al., arXiv 1910.09455, says: about 2 points above the separable network. Two
questions can be meant, and both are answered with E = --epochs and T = --tuned:

  A  separable for E epochs; its regular twin for E, then the twin's students for T more;
  B  the same number of epochs in all: the twin for E - T, its students for T.

So that the number of epochs, the teacher and the decomposition can be told apart, A also has a
separable network of E + T epochs and one that the regular network teaches. Students are of rank 1
and learn from labels alone; joint and auto also from the regular network. 45,000 training images,
cropped and flipped at random; 10,000 test images, once.

Writes beside this file headline_NETWORK_runs.csv, a row for each network of a seed;
headline_NETWORK_epochs.csv, the top-1 on the 5,000 held-out images after each epoch of training;
and from these headline_NETWORK.csv, means over the seeds, where "gain" is in points over A's
separable network of E epochs and of the same seed, and headline_NETWORK.png.

--find trains with a seed of its own and scores on the held-out images: each kind of network at
learning rates twice as high in turn until the next is worse, in --trial epochs; then regular and
separable for E epochs, and joint for T. The table is worth running where the regular network is at
least 3 points better and where the students' last epochs no longer gain.

All is resumable: networks, checkpoints and found rates are kept in TFDWD_RUNS (build/ if unset),
and a second call goes on where the first was interrupted. Training alone also runs with
KERAS_BACKEND=jax. Needs TFDWD_DATA.
"""

import json
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
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
RUN_HEADERS = ["question", "network", "taught by", "epochs", "seed", "MMACs", "before", "top-1"]
EPOCH_HEADERS = [*RUN_HEADERS[:5], "epoch", "top-1"]
HEADERS = [
    *RUN_HEADERS[:4], "seeds", "MMACs", "before", "top-1", "lowest", "highest", "gain", "spread",
]  # fmt: skip

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
    ) -> cifar10.Trained:
        """Trains a network; goes on where an earlier call was interrupted."""
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
    ) -> cifar10.Trained:
        """A network trained from random weights."""
        name = conv if taught_by is None else f"{conv}-taught"
        return self.trained(name, partial(self.fresh, conv), epochs, self.rates[conv], taught_by)

    def student(
        self, kind: str, regular: keras.Model, question: str, taught: bool = False
    ) -> cifar10.Trained:
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
        return mine.trained(f"trial-{conv}", partial(mine.fresh, conv), _TRIAL.value, rate).after

    for conv, first in (("regular", 2e-3), ("separable", 4e-3)):
        rates[conv] = best_rate(conv, partial(from_scratch, conv), first)
    regular = mine.network("regular", _EPOCHS.value).after
    separable = mine.network("separable", _EPOCHS.value).after
    gap = score("regular", regular) - score("separable", separable)
    print(f"the gap at {_EPOCHS.value} epochs: {100 * gap:+.2f} points", flush=True)

    def tuned(rate: float) -> keras.Model:
        rates["student"] = rate
        return mine.student("joint", regular, "A").after

    rates["student"] = best_rate("joint", tuned, 1e-3)
    (folder / "rates.json").write_text(json.dumps(rates, indent=1))
    return rates


# ---------------------------------------------------------------------- the table


def ways(mine: Experiment) -> Iterator[tuple[list[str], Callable[[], cifar10.Trained]]]:
    """What the table holds of one seed: (question, network, taught by, epochs) and its training.

    In an order in which what is there after an interruption already answers something.
    """
    whole, tuned = _EPOCHS.value, _TUNED.value

    def regular(epochs: int) -> keras.Model:
        return mine.network("regular", epochs).after

    def student(question: str, kind: str, taught: bool) -> cifar10.Trained:
        epochs = whole if question == "A" else whole - tuned
        return mine.student(kind, regular(epochs), question, taught)

    yield ["A", "separable", "labels", str(whole)], lambda: mine.network("separable", whole)
    yield ["A", "regular", "labels", str(whole)], lambda: mine.network("regular", whole)
    for question, epochs in ("A", whole + tuned), ("B", whole):
        for kind in STUDENTS:
            for taught in (False, True) if kind in TAUGHT else (False,):
                name = [question, kind, _taught_by(taught), str(epochs)]
                yield name, partial(student, question, kind, taught)
        if question == "A":
            yield (
                ["A", "separable", "labels", str(whole + tuned)],
                lambda: mine.network("separable", whole + tuned),
            )
            yield (
                ["A", "separable", _taught_by(True), str(whole)],
                lambda: mine.network("separable", whole, regular(whole)),
            )
    yield (
        ["B", "regular", "labels", str(whole - tuned)],
        lambda: mine.network("regular", whole - tuned),
    )


def _taught_by(taught: bool) -> str:
    return "regular, labels" if taught else "labels"


def summary(runs: Sequence[list[str]]) -> list[list[str]]:
    """Means over the seeds, and the gain over the seed's separable network of question A."""
    rows = []
    first = next(run for run in runs if run[:2] == ["A", "separable"])
    apart = {run[4]: float(run[7]) for run in runs if run[:4] == first[:4]}
    for way in dict.fromkeys(tuple(run[:4]) for run in runs):
        own = [run for run in runs if tuple(run[:4]) == way]
        top1 = [float(run[7]) for run in own]
        gains = [100 * (float(run[7]) - apart[run[4]]) for run in own]
        rows.append([
            *way, str(len(own)), own[0][5],
            f"{statistics.mean(float(run[6]) for run in own):.4f}",
            f"{statistics.mean(top1):.4f}", f"{min(top1):.4f}", f"{max(top1):.4f}",
            f"{statistics.mean(gains):+.2f}",
            f"{statistics.stdev(gains):.2f}" if len(gains) > 1 else "",
        ])  # fmt: skip
    return rows


def draw(epochs: Sequence[list[str]], path: pathlib.Path) -> None:
    """Held-out top-1 against all epochs so far, means over the seeds, one panel a question."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for panel, question in zip(panels, "AB", strict=True):
        panel.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
        for way in dict.fromkeys(tuple(row[:4]) for row in epochs if row[0] in ("A", question)):
            if way[0] != question and way[1] not in ("separable", "regular"):
                continue
            found: dict[int, list[float]] = {}
            for row in epochs:
                if tuple(row[:4]) == way:
                    found.setdefault(int(row[5]), []).append(float(row[6]))
            before = int(way[3]) - len(found)  # epochs of the regular network
            top1 = [statistics.mean(values) for values in found.values()]
            scratch = way[1] in ("separable", "regular")
            panel.plot(
                [before + epoch for epoch in found], top1, "--" if scratch else "-",
                label=f"{way[1]}, {way[2]}, {way[3]}", linewidth=1.2,
            )  # fmt: skip
        panel.set(title=f"question {question}", xlabel="epochs in all", ylim=(0.5, None))
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("top-1, 5,000 held-out images")
    figure.savefig(path, dpi=110)


def main(_: list[str]) -> None:
    network = _NETWORK.value
    size = f"{network}-{_PIXELS.value}px-{_EPOCHS.value}-{_TUNED.value}"
    folder = RUNS / f"headline-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    if _FIND.value:
        find(folder)
        return
    if not (folder / "rates.json").exists():
        raise app.UsageError(f"no learning rates in {folder}: run with --find first")
    rates = json.loads((folder / "rates.json").read_text())
    test = cifar10.test(_PIXELS.value)
    paths = {part: HERE / f"headline_{network}{part}.csv" for part in ("_runs", "_epochs", "")}
    runs = {tuple(row[:5]): row for row in common.read_rows(paths["_runs"])}
    epochs = common.read_rows(paths["_epochs"])
    for seed in range(_SEEDS.value):
        mine = Experiment(seed, folder, rates)
        for way, train in ways(mine):
            key = (*way, str(seed))
            if key not in runs:
                found = train()
                macs = f"{tfdwd.costs.count(found.after).macs / 1e6:.2f}"
                scores = [
                    f"{tfdwd.evaluate(model, test, batch_size=500).top1:.4f}"
                    for model in (found.before, found.after)
                ]
                runs[key] = [*key, macs, *scores]
                epochs += [
                    [*key, str(number), f"{top1:.4f}"]
                    for number, top1 in enumerate(found.history["val_top1"], 1)
                ]
                common.write_rows(paths["_epochs"], EPOCH_HEADERS, epochs)
                common.write_rows(paths["_runs"], RUN_HEADERS, runs.values())
            print(*runs[key], flush=True)
    rows = summary(list(runs.values()))
    common.write_rows(paths[""], HEADERS, rows)
    draw(epochs, paths[""].with_suffix(".png"))
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    app.run(main)
