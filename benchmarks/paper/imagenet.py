"""Question B of headline.py on ImageNet, with ShuffleNet V2's published recipe.

    python benchmarks/paper/imagenet.py --records=imagenet --first_label=1 --folder=runs
    (the same on each of several machines, with TF_CONFIG and --strategy=multiworker)

Trains ShuffleNet V2 with separable convolutions for EPOCHS epochs, its twin with regular ones for
EPOCHS - TUNED, decomposes the twin at rank 1 (sequential, the paper's; joint; joint with
stack="auto"; channel) on 1,024 training images and fine-tunes each for TUNED epochs on the labels.
Top-1 on the 50,000 validation images, before and after. "joint_taught" and "auto_taught" learn from
the twin instead, without labels, by the defaults of `tfdwd.finetune`. The recipe of all others is
that of Ma et al. (arXiv 1807.11164, section 4): batches of 1,024, SGD with momentum 0.9, weight
decay 4e-5, label smoothing 0.1, a learning rate from 0.5; 300,000 steps there, which are 240
epochs, here 240 in all. What `tfdwd.finetune` does otherwise: the rate rises for a twentieth of the
steps and falls along a cosine instead of a line, and the momentum is Nesterov's. For other batches
it is in proportion.

**It was never run on ImageNet.** What is tested are its first steps, on a few generated images in
ImageNet's layout. The abstract of arXiv 1910.09455 says: about 2 points above ShuffleNet V2; it
does not say by which schedule. Cost, an estimate: 680 epochs in all, 8.7e8 images. At the 250 a
second and core of benchmarks/input_pipeline.csv they take 970 core-hours to read; the networks,
three times the forward MACs, 1.5e18 floating-point operations: about a day on 64 cores and eight
GPUs. Every network is kept in --folder, and training goes on from there when the command is called
again. Writes imagenet.csv into --folder.
"""

import csv
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags

import tfdwd
from tfdwd import data, files, models, workers
from tfdwd.scripts import common

STUDENTS = {
    "sequential": {"method": "sequential"},
    "joint": {"method": "joint"},
    "auto": {"method": "joint", "stack": "auto"},
    "channel": {"method": "channel"},
    "joint_taught": {"method": "joint"},
    "auto_taught": {"method": "joint", "stack": "auto"},
}
CALIBRATION = 1024
# Published as a part of the gradient, which the momentum of 0.9 adds up to ten times as much; Keras
# takes it from the weights, beside the momentum.
WEIGHT_DECAY = 4e-5 / (1 - 0.9)
HEADERS = ["network", "MMACs", "epochs", "before", "top-1", "top-5"]

FLAGS = flags.FlagValues()
_RECORDS = flags.DEFINE_string(
    "records", None, "folder of TFRecord shards, train and validation", required=True,
    flag_values=FLAGS,
)  # fmt: skip
_FOLDER = flags.DEFINE_string(
    "folder", None, "for networks and results; all workers see it", required=True, flag_values=FLAGS
)
_FIRST_LABEL = flags.DEFINE_integer("first_label", 1, "number of class 0", flag_values=FLAGS)
_CLASSES = flags.DEFINE_integer("classes", 1000, "how many", flag_values=FLAGS)
_WIDTH = flags.DEFINE_float("width", 1.0, "of ShuffleNet V2", flag_values=FLAGS)
_PIXELS = flags.DEFINE_integer("pixels", 224, "on a side", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch_size", 1024, "of all workers together", flag_values=FLAGS)
_EPOCHS = flags.DEFINE_integer("epochs", 240, "in all", flag_values=FLAGS)
_TUNED = flags.DEFINE_integer("tuned", 40, "of these, of the students", flag_values=FLAGS)
_STUDENTS = flags.DEFINE_list("students", list(STUDENTS), "of the regular one", flag_values=FLAGS)
_STRATEGY = common.define_strategy(FLAGS, ["none", "mirrored", "multiworker"])


def trained(
    name: str, make: Callable[[], keras.Model], epochs: int, source: data.Source, **options: Any
) -> tuple[keras.Model, keras.Model]:
    """A network before and after training; goes on where an earlier call was interrupted.

    Args:
      options: of `tfdwd.finetune`.
    """
    folder = pathlib.Path(_FOLDER.value) / name
    if not (folder / "before.keras").exists():
        model = make()
        if not workers.index():
            folder.mkdir(parents=True, exist_ok=True)
            files.save_model(model, folder / "before.keras")
    workers.wait()  # until the first has written it
    before, model = (
        keras.models.load_model(folder / "before.keras", compile=False) for _ in range(2)
    )
    tfdwd.finetune(
        model,
        lambda epoch: data.training(
            source, _BATCH.value // workers.count(), size=_PIXELS.value, epoch=epoch,
            worker=workers.index(), workers=workers.count(),
        ),
        epochs=epochs,
        validation=None,
        folder=folder,
        resume=True,
        **options,
    )  # fmt: skip
    return before, model


def published(rate: float) -> dict[str, Any]:
    """The recipe of Ma et al., as options of `tfdwd.finetune`."""
    return {
        "optimizer": "sgd", "learning_rate": rate * _BATCH.value / 1024,
        "weight_decay": WEIGHT_DECAY, "label_smoothing": 0.1,
    }  # fmt: skip


def images(source: data.Source) -> np.ndarray:
    """The calibration images, cropped as for training: (count, pixels, pixels, 3) uint8."""
    size = min(CALIBRATION, source.count)
    [batch] = data.training(source, size, size=_PIXELS.value, seed=1).take(1).as_numpy_iterator()
    return batch[0][workers.index() :: workers.count()]


def networks(source: data.Source) -> Iterator[tuple[str, int, keras.Model | None, keras.Model]]:
    """(name, epochs, the network before fine-tuning, and after) of all."""
    whole, tuned = _EPOCHS.value, _TUNED.value

    def build(conv: str) -> keras.Model:
        keras.utils.set_random_seed(0)
        shape = (_PIXELS.value, _PIXELS.value, 3)
        return models.ShuffleNetV2(
            _WIDTH.value, conv=conv, input_shape=shape, classes=_CLASSES.value
        )

    separable = trained("separable", partial(build, "separable"), whole, source, **published(0.5))
    yield "separable", whole, None, separable[1]
    own = whole - tuned
    _, regular = trained("regular", partial(build, "regular"), own, source, **published(0.5))
    yield "regular", own, None, regular
    calibration = images(source)
    for name in _STUDENTS.value:
        make: Any = partial(tfdwd.decompose, regular, calibration, rank=1, **STUDENTS[name])
        # A tenth of the rate: the network is close to its end already.
        options = {"teacher": regular} if name.endswith("_taught") else published(0.05)
        yield name, whole, *trained(name, make, tuned, source, **options)


def main() -> None:
    rows = []
    with _STRATEGY():
        source = data.tfrecords(_RECORDS.value, "train", first_label=_FIRST_LABEL.value)
        held_out = data.tfrecords(_RECORDS.value, "validation", first_label=_FIRST_LABEL.value)
        resize = _PIXELS.value * 256 // 224
        test = data.evaluation(held_out, size=_PIXELS.value, resize=resize)
        for name, epochs, before, after in networks(source):
            found = tfdwd.evaluate(after, test)
            first = "" if before is None else f"{tfdwd.evaluate(before, test).top1:.4f}"
            macs = f"{tfdwd.costs.count(after).macs / 1e6:.2f}"
            rows.append([name, macs, epochs, first, f"{found.top1:.4f}", f"{found.top5:.4f}"])
            if not workers.index():
                print(*rows[-1], flush=True)
                path = pathlib.Path(_FOLDER.value) / "imagenet.csv"
                with open(path, "w", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows([HEADERS, *rows])


if __name__ == "__main__":
    sys.exit(common.status(main, FLAGS, __doc__, sys.argv))
