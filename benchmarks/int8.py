"""What int8 costs the students of the ResNet-8 and of the demo's network, and what scaling brings.

    python benchmarks/int8.py        (about 10 minutes on two cores)

Decomposes with `joint` at ranks 1, 2 and 3, with both kinds of stacks, and exports to int8 with the
ranges of 256 calibration images: once as decompose gives the stacks, with their factors scaled
against each other for int8 (`tfdwd.factorize.equalized`), once without that. Top-1 of the float
student, and of either .tflite file, on all test images of the ResNet-8 (1,017, one standard error
is one point) and of Fashion-MNIST (4,000, half a point). Expected: with the scales at most one
point lost. Needs TFDWD_DATA. Writes int8.csv beside this file.
"""

import dataclasses
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common

import tfdwd
from tfdwd import calibration, reporting

HERE = pathlib.Path(__file__).parent
HEADERS = [
    "network", "stacks", "float", "int8", "loses", "unscaled", "loses unscaled", "SQNR in dB",
]  # fmt: skip


def main() -> None:
    rows = []
    for network, load, examples, count in (
        ("ResNet-8", common.resnet8, common.cifar10, 1024),
        ("demo", common.shufflenet, common.fashion, 512),
    ):
        model, ((train, _), test) = load(), examples()
        images = train[:count]
        for stack, rank in [("original", 0)] + [
            (s, r) for s in ("separable", "auto") for r in (1, 2, 3)
        ]:
            accuracies, sqnr = [], 0.0
            for scaled in (True, False):
                with tempfile.TemporaryDirectory() as folder:
                    student = model
                    if stack != "original":
                        settings = dataclasses.replace(calibration.DEFAULT, equalize=scaled)
                        student = common.decomposed(
                            model, images, rank=rank, stack=stack, settings=settings
                        )
                    if scaled:
                        accuracies.append(tfdwd.evaluate(student, test, batch_size=500).top1)
                    path = f"{folder}/student.tflite"
                    report = tfdwd.export(student, path, quantize="int8", data=images[:256])
                    sqnr = report.outputs[0].sqnr_db if scaled else sqnr
                    accuracies.append(tfdwd.evaluate(path, test).top1)
            in_float, int8, without = accuracies
            rows.append(
                (
                    network, f"{stack} {rank or ''}".strip(), f"{in_float:.4f}", f"{int8:.4f}",
                    f"{100 * (in_float - int8):.1f}", f"{without:.4f}",
                    f"{100 * (in_float - without):.1f}", f"{sqnr:.1f}",
                )
            )  # fmt: skip
            print(*rows[-1], flush=True)
            common.write_rows(HERE / "int8.csv", HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
