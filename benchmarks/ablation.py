"""What each part of `decompose` brings on the ResNet-8 of MLPerf Tiny, label-free, no fine-tuning.

    python benchmarks/ablation.py        (about 5 minutes on two cores)

Calibrates on the first 1,024 images of `x_train`, reports top-1 on its other 4,061 images, never on
test images: this is where settings were chosen. (The network was trained on images like these,
so its own top-1 here is 0.93, not the 0.88 of the test images. One standard error is 0.8 points;
differences between rows, on the same images, are known better.) Needs TFDWD_DATA. Writes
ablation.csv beside this file.
"""

import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import numpy as np

import tfdwd
from tfdwd import calibration, reporting

HERE = pathlib.Path(__file__).parent
AS_IT_IS = calibration.DEFAULT
VARIANTS = {
    "as it is": {},
    "without the Fisher metric": {"fisher": False},
    "without the ReLU's freedom": {"rectifications": 0},
    "the ReLU's freedom used once": {"rectifications": 1},
    "used four times": {"rectifications": 4},
    "the first convolution replaced too": {"include": "*"},
    "a quarter of the rows": {
        "min_rows": AS_IT_IS.min_rows // 4,
        "rows_per_unknown": AS_IT_IS.rows_per_unknown // 4,
    },
    "four times the rows": {
        "min_rows": AS_IT_IS.min_rows * 4,
        "rows_per_unknown": AS_IT_IS.rows_per_unknown * 4,
    },
    "neither the ReLU's freedom nor residual targets": {"residual": False, "rectifications": 0},
}


def decomposed(model: keras.Model, images: np.ndarray, rank: int, variant: dict) -> keras.Model:
    """As `tfdwd.decompose` does it, with other settings."""
    changes = dict(variant)
    include = changes.pop("include", None)
    settings = dataclasses.replace(AS_IT_IS, **changes)
    return common.decomposed(model, images, 32, rank=rank, include=include, settings=settings)


def main() -> None:
    model, (train, _) = common.resnet8(), common.cifar10()
    images, held_out = train[0][:1024], (train[0][1024:], train[1][1024:])
    rows = []
    for name, variant in VARIANTS.items():
        accuracies = [
            tfdwd.evaluate(decomposed(model, images, rank, variant), held_out).top1
            for rank in (1, 2)
        ]
        rows.append([name, *(f"{accuracy:.4f}" for accuracy in accuracies)])
        print(*rows[-1], flush=True)
    headers = ["variant", "rank 1", "rank 2"]
    print(reporting.table(headers, rows))
    common.write_rows(HERE / "ablation.csv", headers, rows)


if __name__ == "__main__":
    main()
