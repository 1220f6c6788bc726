"""Trains the demo's network: ShuffleNet V2 with regular 3x3 convolutions, on Fashion-MNIST.

    apt-get install dataset-fashion-mnist
    python benchmarks/demo/train.py

About 45 minutes on two cores. Writes, beside this file, `fashion_shufflenet.keras` (2.5 MB) and
`fashion_mnist.npz`: the first 2,048 training images (calibration data) and the first 4,000
test images. Prints the top-1 accuracy on all 10,000 test images (expected: about 0.93). All
60,000 training images are trained on; nothing is chosen by the test images.
An interrupted run goes on from its last whole epoch.

Data: Xiao et al. 2017, "Fashion-MNIST", arXiv 1708.07747 (MIT licence), as Debian packages it.
"""

import io
import json
import pathlib
import sys
import zipfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tfdwd.models import ShuffleNetV2

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402

BATCH = 128

_DATA = flags.DEFINE_string("data", str(common.FASHION), "folder of the four idx.gz files")
_EPOCHS = flags.DEFINE_integer("epochs", 15, "passes over the training images")
_WORK = flags.DEFINE_string("work", "/tmp/tfdwd-demo-train", "folder for the resume checkpoint")


# Fields of Keras 3.15 that Keras 3.12, the last one for Python 3.10, does not know.
NEWER = {
    "quantization_config": None, "input_axes": None, "output_axes": None, "renorm": False,
    "renorm_clipping": None, "renorm_momentum": 0.99,
}  # fmt: skip


def for_older_keras(content: bytes) -> bytes:
    """A .keras file without the newer fields, where they have the values that they default to."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            held = {key: without(own) for key, own in value.items()}
            return {k: v for k, v in held.items() if k not in NEWER or v != NEWER[k]}
        return [without(own) for own in value] if isinstance(value, list) else value

    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename == "config.json":
                data = json.dumps(without(json.loads(data))).encode()
            new.writestr(entry, data)
    return written.getvalue()


def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    image = tf.image.random_flip_left_right(image)
    image = tf.image.random_crop(tf.pad(image, [[2, 2], [2, 2], [0, 0]]), [28, 28, 1])
    return tf.cast(image, tf.float32), label


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    keras.utils.set_random_seed(0)
    (x_train, y_train), (x_test, y_test) = common.whole_fashion(pathlib.Path(_DATA.value))

    model = ShuffleNetV2(
        0.5, conv="regular", input_shape=(28, 28, 1), classes=10, stem="small",
        repeats=(3, 5, 3), last_channels=512, name="fashion_shufflenet",
    )  # fmt: skip
    steps = _EPOCHS.value * (len(x_train) // BATCH)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=0.2, warmup_steps=500),
            momentum=0.9, nesterov=True, weight_decay=2e-4,
        ),
        "sparse_categorical_crossentropy", metrics=["accuracy"],
    )  # fmt: skip
    train = (
        tf.data.Dataset.from_tensor_slices((x_train, y_train))
        .shuffle(len(x_train), seed=0)
        .map(augment, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH, drop_remainder=True)
        .prefetch(2)
    )
    model.fit(
        train, epochs=_EPOCHS.value, verbose=2,
        callbacks=[keras.callbacks.BackupAndRestore(_WORK.value)],
    )  # fmt: skip
    accuracy = model.evaluate(x_test.astype(np.float32), y_test, batch_size=500, verbose=0)[1]
    print(f"top-1 on the {len(x_test)} test images: {accuracy:.4f}")

    # Saved again without the optimiser, whose momentum takes as much as the weights.
    path = HERE / "fashion_shufflenet.keras"
    model.save(path)
    keras.models.load_model(path, compile=False).save(path)
    path.write_bytes(for_older_keras(path.read_bytes()))
    np.savez_compressed(
        HERE / "fashion_mnist.npz",
        x_train=x_train[:2048], y_train=y_train[:2048], x_test=x_test[:4000], y_test=y_test[:4000],
    )  # fmt: skip


if __name__ == "__main__":
    app.run(main)
