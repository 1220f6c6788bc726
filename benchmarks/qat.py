"""What int8 costs ResNet-8 students after training, with and without quantisation-aware training.

    python benchmarks/qat.py        (about 25 minutes on two cores)

Decomposes the ResNet-8 of MLPerf Tiny with `joint` at ranks 1, 2 and 3, with both kinds of stacks,
and distils each student for 10 epochs on 5,085 flipped and shifted images without labels (Adam at
1e-3, cosine; cross-entropy against the original's outputs). From there two ways of 3 more epochs
at 1e-4 on the same images: in float32, and quantisation-aware. Top-1 on all 1,017 test images (one
standard error is one point; the files of one row differ by less, as they err on the same images):
the float student, its int8 file with the ranges of 256 images, the quantisation-aware model as
tf_keras computes it, and its int8 file. "gap" is the difference of the last two in points on
10,000 other images, CIFAR-10's JPEG-compressed validation images, as 1,017 are too few to tell half
a point (all networks are less accurate there, so the two differ on more images than elsewhere).
Expected: the gap within half a point, and the last file at most half a point below the float
student. Needs TFDWD_DATA. Writes qat.csv beside this file.
"""

import os
import pathlib
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import numpy as np
import tensorflow as tf
import tf_keras

import tfdwd
from tfdwd import reporting

HERE = pathlib.Path(__file__).parent
HEADERS = [
    "stacks", "float", "int8", "loses", "QAT in tf_keras", "QAT in int8", "QAT loses", "gap",
]  # fmt: skip
EPOCHS, MORE, BATCH = 10, 3, 64


def augmented(images: np.ndarray, epochs: int) -> np.ndarray:
    """Each image flipped at random and shifted by up to 4 px, for each epoch anew."""
    source = np.random.default_rng(0)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    made = np.empty((epochs, *images.shape), images.dtype)
    for epoch in range(epochs):
        for row in source.permutation(len(images)):
            top, left = source.integers(0, 9, 2)
            image = padded[row, top : top + 32, left : left + 32]
            made[epoch, row] = image[:, ::-1] if source.integers(2) else image
    return made.reshape(-1, *images.shape[1:])


def fitted(model: Any, images: np.ndarray, soft: np.ndarray, rate: float) -> Any:
    """The model after one pass over the images, in their order."""
    kit: Any = keras if isinstance(model, keras.Model) else tf_keras
    keras.utils.set_random_seed(0)
    steps = -(-len(images) // BATCH)
    adam = kit.optimizers.Adam(kit.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(adam, kit.losses.CategoricalCrossentropy())
    model.fit(images.astype(np.float32), soft, batch_size=BATCH, shuffle=False, verbose=0)
    return model


def validation() -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 validation images in TFRecords, and their labels."""
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    paths = sorted(map(os.fspath, (common.DATA / "cifar10").glob("validation-*")))
    records = [tf.io.parse_single_example(r, features) for r in tf.data.TFRecordDataset(paths)]
    images = [tf.io.decode_jpeg(record["image/encoded"]).numpy() for record in records]
    return np.stack(images), np.array([int(record["image/class/label"]) for record in records])


def main() -> None:
    model, ((train, _), test) = common.resnet8(), common.cifar10()
    others = validation()
    images = augmented(train, EPOCHS + MORE)
    soft = model.predict(images, batch_size=500, verbose=0)
    first = slice(0, EPOCHS * len(train))
    rest = slice(first.stop, None)

    def int8(student: Any) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/student.tflite"
            tfdwd.export(student, path, quantize="int8", data=train[:256])
            return tfdwd.evaluate(path, test).top1, tfdwd.evaluate(path, others).top1

    rows = []
    for stack in ("separable", "auto"):
        for rank in (1, 2, 3):
            student = tfdwd.decompose(model, train[:1024], rank=rank, stack=stack)
            fitted(student, images[first], soft[first], 1e-3)
            aware = fitted(tfdwd.quantize_aware(student), images[rest], soft[rest], 1e-4)
            fitted(student, images[rest], soft[rest], 1e-4)
            in_float = tfdwd.evaluate(student, test, batch_size=500).top1
            after, _ = int8(student)
            kept, of_others = int8(aware)
            trained = tfdwd.evaluate(aware, test, batch_size=500).top1
            gap = tfdwd.evaluate(aware, others, batch_size=500).top1 - of_others
            rows.append(
                (
                    f"{stack} {rank}", f"{in_float:.4f}", f"{after:.4f}",
                    f"{100 * (in_float - after):.1f}", f"{trained:.4f}", f"{kept:.4f}",
                    f"{100 * (in_float - kept):.1f}", f"{100 * gap:+.2f}",
                )
            )  # fmt: skip
            print(*rows[-1], flush=True)
            common.write_rows(HERE / "qat.csv", HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
