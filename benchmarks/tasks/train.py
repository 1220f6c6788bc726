"""Trains the networks of the three tasks.

    python benchmarks/tasks/train.py                    (all; 15 minutes of processor time)
    python benchmarks/tasks/train.py segmentation

Writes build/tasks/NAME.keras, NAME.npz with the calibration images ("x") and the test images and
labels ("x_test", "y_test"), and prints the score on the calibration images, which are not trained
on. Expected, of the last 1,024 of these: PSNR 28.06 dB (bicubic: 26.12), mean IoU 0.825, AP50
0.831. Needs TFDWD_DATA and Debian's package dataset-fashion-mnist.
"""

import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tasks import TASKS, Task

import tfdwd

BUILD = pathlib.Path(__file__).resolve().parent.parent.parent / "build" / "tasks"
BATCH = 64


def train(task: Task) -> keras.Model:
    """The trained network: read from build/, or made now."""
    path = BUILD / f"{task.name}.keras"
    if path.is_file():
        return keras.models.load_model(path, compile=False)
    keras.utils.set_random_seed(0)
    images, labels = task.examples("train")
    targets = task.targets(labels)
    model = task.network()
    steps = task.epochs * (len(images) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=task.rate, warmup_steps=steps // 20
    )
    model.compile(keras.optimizers.Adam(schedule), task.losses)
    start = time.perf_counter(), time.process_time()
    model.fit(images, targets, batch_size=BATCH, epochs=task.epochs, verbose=2)
    print(
        f"{task.name}: {model.count_params():,} parameters, trained in "
        f"{time.perf_counter() - start[0]:.0f} s, {time.process_time() - start[1]:.0f} s of cores"
    )
    BUILD.mkdir(parents=True, exist_ok=True)
    model.compile()  # or Adam's moments would be saved
    keras.Model(model.input, model.output, name=task.name).save(path)
    return keras.models.load_model(path, compile=False)


if __name__ == "__main__":
    for task in TASKS:
        if task.name in sys.argv[1:] or not sys.argv[1:]:
            trained = train(task)
            images, labels = task.examples("calibration")
            print(tfdwd.evaluate(trained, (images, labels), metric=task.metric))
            x_test, y_test = task.examples("test")
            np.savez(BUILD / f"{task.name}.npz", x=images, x_test=x_test, y_test=y_test)
