"""Students of the ResNet-8 fine-tuned on few images without labels, by the defaults of finetune.

    python benchmarks/distill.py ["0.35"] ["0.5"] ["0.6"] ["0.67 int8"]    (45 minutes a student)

Plans for the ResNet-8 of MLPerf Tiny at parts of its time, decomposes on 1,024 images and
fine-tunes with the original as the teacher on the 5,085 unlabelled training images, for 40 minutes.
The int8 student is planned for a part of the original's int8 time; it is fine-tuned for 30 minutes,
then made quantise-aware and fine-tuned for 10 more. Top-1 is that of the .tflite files on all 1,017
test images, once, before and after; one standard error is one point. Times are taken as in plan.py.
Wanted: 0.83, 0.86, 0.87 and 0.855. Needs TFDWD_DATA. Writes distill.csv beside this file, whose
rows of the same students are replaced.
"""

import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import plan

import tfdwd
from tfdwd import reporting

HERE = pathlib.Path(__file__).parent
HEADERS = ["student", "MMACs", "time", "low", "high", "epochs", "before", "after"]
STUDENTS = ["0.35", "0.5", "0.6", "0.67 int8"]
MINUTES, AWARE_MINUTES, AWARE_RATE = 40, 10, 1e-4


def main(names: list[str]) -> None:
    model, ((train, _), test) = common.resnet8(), common.cifar10()
    few = train[:1024]
    rows = {row[0]: row for row in common.read_rows(HERE / "distill.csv")}
    for name in names:
        part, _, precision = name.partition(" ")
        precision = precision or "none"
        found = tfdwd.plan(model, few, latency=float(part), quantize=precision)
        student = tfdwd.decompose(model, few, rank=found)
        macs = tfdwd.costs.count(student).macs
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/before.tflite"
            tfdwd.export(student, path, quantize=precision, data=few[:256])
            before = tfdwd.evaluate(path, test).top1
        minutes = MINUTES - (AWARE_MINUTES if precision == "int8" else 0)
        epochs = len(tfdwd.finetune(student, train, teacher=model, minutes=minutes).epoch)
        if precision == "int8":
            student = tfdwd.quantize_aware(student)
            options = {"minutes": AWARE_MINUTES, "learning_rate": AWARE_RATE}
            epochs += len(tfdwd.finetune(student, train, teacher=model, **options).epoch)
        own = plan.measured(model, student, few, precision, test)
        rows[name] = [
            name, f"{macs / 1e6:.2f}", f"{own.time:.3f}", f"{own.low:.3f}", f"{own.high:.3f}",
            str(epochs), f"{before:.4f}", f"{own.top1:.4f}",
        ]  # fmt: skip
        common.write_rows(HERE / "distill.csv", HEADERS, rows.values())
    print(reporting.table(HEADERS, rows.values()))


if __name__ == "__main__":
    main(sys.argv[1:] or STUDENTS)
