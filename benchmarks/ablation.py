"""What each part of `decompose` brings on the ResNet-8 of MLPerf Tiny, label-free, no fine-tuning.

    python benchmarks/ablation.py        (about 5 minutes on two cores)

Calibrates on the first 1,024 images of `x_train`, reports top-1 on its other 4,061 images, never on
test images: this is where settings were chosen. (The network was trained on images like these,
so its own top-1 here is 0.93, not the 0.88 of the test images. One standard error is 0.8 points;
differences between rows, on the same images, are known better.) Needs TFDWD_DATA. Writes
ablation.csv beside this file.
"""

import csv
import os
import pathlib
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import tfdwd
from tfdwd import calibration, candidates, decomposition, reporting

DATA = pathlib.Path(os.environ.get("TFDWD_DATA", "../shared/data"))
HERE = pathlib.Path(__file__).parent
SWEEP = calibration.sweep


def unweighted(*args, weigh, **options):
    return SWEEP(*args, weigh=False, **options)


VARIANTS = {
    "as it is": [],
    "without the Fisher metric": [mock.patch.object(calibration, "sweep", unweighted)],
    "without the ReLU's freedom": [mock.patch.object(decomposition, "RECTIFICATIONS", 0)],
    "the ReLU's freedom used once": [mock.patch.object(decomposition, "RECTIFICATIONS", 1)],
    "used four times": [mock.patch.object(decomposition, "RECTIFICATIONS", 4)],
    "the first convolution replaced too": [mock.patch.object(candidates, "MIN_CHANNELS", 1)],
    "a quarter of the rows": [
        mock.patch.object(calibration, "MIN_ROWS", calibration.MIN_ROWS // 4),
        mock.patch.object(calibration, "ROWS_PER_UNKNOWN", calibration.ROWS_PER_UNKNOWN // 4),
    ],
    "four times the rows": [
        mock.patch.object(calibration, "MIN_ROWS", calibration.MIN_ROWS * 4),
        mock.patch.object(calibration, "ROWS_PER_UNKNOWN", calibration.ROWS_PER_UNKNOWN * 4),
    ],
    "neither the ReLU's freedom nor residual targets": [
        mock.patch.object(calibration, "_inverse", lambda gain: np.zeros(len(gain), np.float32)),
        mock.patch.object(decomposition, "RECTIFICATIONS", 0),
    ],
}


def main() -> None:
    model = keras.models.load_model(DATA / "mlperf_tiny_resnet8.h5", compile=False)
    with np.load(DATA / "cifar10_subset.npz") as content:
        images = content["x_train"][:1024]
        held_out = content["x_train"][1024:], content["y_train"][1024:].ravel()
    rows = []
    for name, patches in VARIANTS.items():
        for patch in patches:
            patch.start()
        accuracies = [
            tfdwd.evaluate(tfdwd.decompose(model, images, rank=rank), held_out).top1
            for rank in (1, 2)
        ]
        for patch in patches:
            patch.stop()
        rows.append([name, *(f"{accuracy:.4f}" for accuracy in accuracies)])
        print(*rows[-1], flush=True)
    headers = ["variant", "rank 1", "rank 2"]
    print(reporting.table(headers, rows))
    with open(HERE / "ablation.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([headers, *rows])


if __name__ == "__main__":
    main()
