"""How many images fine-tuning needs: the same student, fine-tuned by the defaults on more and more.

    python benchmarks/images.py                     (all three; an hour or more of one core)
    python benchmarks/images.py demo

The ResNet-8 of MLPerf Tiny, the demo's network and the VGG-like one of plan_networks.py, planned
for half of their time and decomposed on 1,024 images (the demo: 512); then fine-tuned by
`tfdwd.finetune(student, images, teacher=model)` on as many unlabelled training images as COUNTS
says, one seed. Top-1 is that of the .tflite files on the test images, once; one standard error is
1.0, 0.4 and 0.5 points. Times are taken as in plan.py. Writes images.csv beside this file; rows
that are there are not made again. Students are kept in build/images. Needs TFDWD_DATA and Debian's
package dataset-fashion-mnist.
"""

import itertools
import pathlib
import sys
import time
from collections.abc import Iterator

import common
import keras
import numpy as np
import plan
from plan_networks import cifar10

import tfdwd
from tfdwd import files, reporting

HERE = pathlib.Path(__file__).resolve().parent
TABLE, BUILD = HERE / "images.csv", HERE.parent / "build" / "images"
HEADERS = [
    "network", "images", "epochs", "minutes", "time", "low", "high", "original", "before", "top-1",
]  # fmt: skip
COUNTS = {"resnet8": (1024, 5085), "demo": (512, 2048, 8192), "vgg": (1024, 4096, 16384)}


def training_images(name: str) -> np.ndarray:
    """Those that begin with the ones that the network is decomposed on."""
    if name == "resnet8":
        return common.cifar10()[0][0]
    if name == "demo":
        return common.whole_fashion()[0][0]
    return cifar10.load("train")[0][: -cifar10.HELD_OUT]


def student_of(name: str) -> keras.Model:
    """From build/, or made now."""
    path = BUILD / f"{name}.keras"
    if not path.exists():
        model, few, _ = plan.NETWORKS[name]()
        student = tfdwd.decompose(model, few, rank=tfdwd.plan(model, few, latency=0.5))
        BUILD.mkdir(parents=True, exist_ok=True)
        files.save_model(tfdwd.flatten(student), path)
    return keras.models.load_model(path, compile=False)


def rows_of(name: str, done: set[tuple[str, ...]]) -> Iterator[list[str]]:
    """Rows of the table for one network that are not there yet."""
    model, few, test = plan.NETWORKS[name]()
    images = training_images(name)
    for count in COUNTS[name]:
        if (name, str(count)) in done:
            continue
        student = student_of(name)
        original, before = (tfdwd.evaluate(own, test).top1 for own in (model, student))
        began = time.monotonic()
        epochs = len(tfdwd.finetune(student, images[:count], teacher=model).epoch)
        minutes = (time.monotonic() - began) / 60
        own = plan.measured(model, student, few, "none", test)
        yield [
            name, str(count), str(epochs), f"{minutes:.1f}", f"{own.time:.3f}", f"{own.low:.3f}",
            f"{own.high:.3f}", f"{original:.4f}", f"{before:.4f}", f"{own.top1:.4f}",
        ]  # fmt: skip


def main(names: list[str]) -> None:
    done = {tuple(row[:2]) for row in common.read_rows(TABLE)}
    new = itertools.chain.from_iterable(rows_of(name, done) for name in names)
    rows = common.add_rows(TABLE, HEADERS, new)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main(sys.argv[1:] or list(COUNTS))
