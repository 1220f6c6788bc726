"""Planned students beside uniform ones: accuracy at the same measured time, prediction and truth.

    python benchmarks/plan.py                    (all five networks; hours on two cores)
    python benchmarks/plan.py resnet8 demo       (about 15 minutes)

For the ResNet-8 of MLPerf Tiny and the demo's network, in float32 and int8: decomposes with every
uniform rank from 1 to 3 of either stack, measures each student's speed-up, plans for the same time,
and measures the planned student side by side with the original. Label-free, no fine-tuning; top-1
of the .tflite files on all test images (1,017 with one standard error of one point; 4,000, half a
point). For MobileNet, ResNet50 and InceptionV3 of keras.applications at 96 px, random weights:
plans for 0.7 of the original's time (MobileNet, which has one regular convolution: for the fastest
that can be had), and measures. Expected: predicted time
within 15 % of the measured one, no planned student slower than its original, none less accurate
than the uniform one of the same time. The first two need TFDWD_DATA. Adds to plan.csv beside this
file, whose rows for the same networks are replaced.
"""

import csv
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import tfdwd
from tfdwd import reporting

DATA = pathlib.Path(os.environ.get("TFDWD_DATA", "../shared/data"))
HERE = pathlib.Path(__file__).parent
HEADERS = [
    "network", "precision", "uniform", "its top-1", "its speed-up", "planned top-1",
    "planned speed-up", "low", "high", "predicted ms", "measured ms", "off by %",
]  # fmt: skip


def resnet8():
    model = keras.models.load_model(DATA / "mlperf_tiny_resnet8.h5", compile=False)
    with np.load(DATA / "cifar10_subset.npz") as content:
        return model, content["x_train"][:1024], (content["x_test"], content["y_test"].ravel())


def demo():
    model = keras.models.load_model(HERE / "demo" / "fashion_shufflenet.keras", compile=False)
    with np.load(HERE / "demo" / "fashion_mnist.npz") as content:
        return model, content["x_train"][:512], (content["x_test"], content["y_test"])


def random(name):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3))
    return model, np.random.default_rng(0).normal(size=(64, 96, 96, 3)).astype(np.float32), None


NETWORKS = {
    "resnet8": resnet8,
    "demo": demo,
    "mobilenet": lambda: random("MobileNet"),
    "resnet50": lambda: random("ResNet50"),
    "inceptionv3": lambda: random("InceptionV3"),
}


def measured(model, student, images, precision, test):
    """The student's timing, and its top-1 as a .tflite file; "" without test images."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"original": f"{folder}/original.tflite", "student": f"{folder}/student.tflite"}
        for network, path in ((model, paths["original"]), (student, paths["student"])):
            tfdwd.export(network, path, quantize=precision, data=images[:256])
        timing = tfdwd.benchmark(paths).timings[1]
        top1 = f"{tfdwd.evaluate(paths['student'], test).top1:.4f}" if test else ""
    return timing, top1


def compared(name, precision):
    """Rows of the table for one network in one precision."""
    model, images, test = NETWORKS[name]()
    targets = [("", "", "", 0.7)]
    if test:
        targets = []
        for stack in ("separable", "bottleneck"):
            for rank in (1, 2, 3):
                student = tfdwd.decompose(model, images, rank=rank, stack=stack)
                timing, top1 = measured(model, student, images, precision, test)
                part = 1 / timing.speed_up
                if part < 1:  # who would want one that is slower
                    targets.append((f"{stack} {rank}", top1, f"{timing.speed_up:.2f}", part))
    for label, uniform_top1, uniform_speed_up, part in targets:
        budget = {"max_error": 1e9} if name == "mobilenet" else {"latency": part}
        try:
            plan = tfdwd.plan(model, images, quantize=precision, **budget)
        except tfdwd.Error as error:
            print(f"{name} {precision} {label}: {error}", flush=True)
            yield [name, precision, label, uniform_top1, uniform_speed_up, *["none"] * 7]
            continue
        student = tfdwd.decompose(model, images, rank=plan)
        timing, top1 = measured(model, student, images, precision, test)
        off = 100 * (plan.ms_after / timing.median_ms - 1)
        yield [
            name, precision, label, uniform_top1, uniform_speed_up, top1, f"{timing.speed_up:.2f}",
            f"{timing.speed_up_low:.2f}", f"{timing.speed_up_high:.2f}", f"{plan.ms_after:.4f}",
            f"{timing.median_ms:.4f}", f"{off:+.1f}",
        ]  # fmt: skip


def main():
    names = sys.argv[1:] or list(NETWORKS)
    path = HERE / "plan.csv"
    rows = []
    if path.is_file():
        with open(path, newline="") as file:
            rows = [row for row in list(csv.reader(file))[1:] if row[0] not in names]
    for name in names:
        for precision in ("none", "int8"):
            for row in compared(name, precision):
                print(*row, flush=True)
                rows.append(row)
                rows.sort(key=lambda row: list(NETWORKS).index(row[0]))
                with open(path, "w", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows([HEADERS, *rows])
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
