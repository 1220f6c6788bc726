"""Trains three networks for CIFAR-10 that nothing in tfdwd was tuned on, for benchmarks/plan.py.

    python benchmarks/plan_networks.py              (all three; 15 to 30 minutes each on two cores)
    python benchmarks/plan_networks.py fire

"vgg" is plain, six convolutions without shortcuts; "fire" has SqueezeNet's modules, which
concatenate what a pointwise and a 3x3 convolution give (Iandola et al., arXiv 1602.07360, section
3.2); "bottleneck" has the residual ones of ResNet50 (He et al., arXiv 1512.03385, figure 5). All of
32 px and with batch norms, trained alike from labels: flips and shifts, 12 epochs. Goes on where it
was interrupted. Writes build/plan/NAME, and prints the top-1 on the 5,000 training images that are
held out. Needs TFDWD_DATA.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import tfdwd

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "paper"))
import cifar10  # noqa: E402

BUILD = HERE.parent / "build" / "plan"
EPOCHS, RATE, WEIGHT_DECAY = 12, 3e-3, 1e-4


def _conv(x: keras.KerasTensor, filters: int, taps: int, strides: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(filters, taps, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def vgg() -> keras.Model:
    x = image = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 64, -2)(x)
    for filters in (16, 32, 64):
        for _ in range(2):
            x = layers.ReLU()(_conv(x, filters, 3))
        x = layers.MaxPooling2D()(x)
    return _classifier(image, x)


def fire() -> keras.Model:
    x = image = keras.Input((32, 32, 3))
    x = layers.ReLU()(_conv(layers.Rescaling(1 / 64, -2)(x), 16, 3))
    for expanded, strides in ((24, 1), (32, 2), (32, 1), (48, 2), (48, 1), (64, 1)):
        x = layers.MaxPooling2D(3, strides, padding="same")(x) if strides > 1 else x
        x = layers.ReLU()(_conv(x, expanded // 2, 1))
        x = layers.Concatenate()([layers.ReLU()(_conv(x, expanded, taps)) for taps in (1, 3)])
    return _classifier(image, x)


def bottleneck() -> keras.Model:
    x = image = keras.Input((32, 32, 3))
    x = layers.ReLU()(_conv(layers.Rescaling(1 / 64, -2)(x), 16, 3))
    for filters, strides in ((8, 1), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1)):
        y = layers.ReLU()(_conv(x, filters, 1, strides))
        y = _conv(layers.ReLU()(_conv(y, filters, 3)), 4 * filters, 1)
        same = strides == 1 and x.shape[-1] == 4 * filters
        x = layers.ReLU()(layers.Add()([x if same else _conv(x, 4 * filters, 1, strides), y]))
    return _classifier(image, x)


def _classifier(image: keras.KerasTensor, x: keras.KerasTensor) -> keras.Model:
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


NETWORKS = {make.__name__: make for make in (vgg, fire, bottleneck)}


def trained(name: str) -> keras.Model:
    """The trained network: read from build/, or made now."""
    keras.utils.set_random_seed(0)
    return cifar10.trained(
        BUILD / name, NETWORKS[name], cifar10.split(32, 0).train, epochs=EPOCHS,
        learning_rate=RATE, weight_decay=WEIGHT_DECAY,
    ).after  # fmt: skip


def calibration() -> np.ndarray:
    """1,024 training images (1024, 32, 32, 3) uint8."""
    return cifar10.split(32, 0).calibration


if __name__ == "__main__":
    for name in sys.argv[1:] or NETWORKS:
        held_out = cifar10.split(32, 0).held_out
        print(name, tfdwd.evaluate(trained(name), held_out), flush=True)
