"""Students of the ResNet-8 distilled from it on few images without labels.

    python benchmarks/distill.py ["auto 1"] ["auto 2"] ["planned, 0.6"]     (12 minutes a student)

Decomposes the ResNet-8 of MLPerf Tiny with stack="auto" at ranks 1 and 2, and by a plan for 0.6 of
its time, and fine-tunes each with its original as the teacher on the 5,085 unlabelled training
images, flipped, shifted by up to 4 px and mixed in pairs (mixup: with the teacher's answers to what
is seen no label is needed; Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent", arXiv 2106.05237). Top-1 on all 1,017 test images, once, before and after; one standard
error is one point. Wanted: 0.78, 0.84 and 0.855. Needs TFDWD_DATA. Writes distill.csv beside this
file.
"""

import os
import pathlib
import sys
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import numpy as np

import tfdwd
from tfdwd import reporting

HERE = pathlib.Path(__file__).parent
HEADERS = ["student", "MMACs", "epochs", "before", "after"]
STUDENTS = ["auto 1", "auto 2", "planned, 0.6"]
BATCH, EPOCHS = 128, 150


def augmented(images: np.ndarray, epoch: int) -> Iterator[np.ndarray]:
    """Batches of one epoch: flipped, shifted, and mixed with others of the batch."""
    source = np.random.default_rng(epoch)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    for rows in np.array_split(source.permutation(len(images)), len(images) // BATCH):
        batch = np.empty((BATCH, *images.shape[1:]), np.float32)
        for place, row in enumerate(rows[:BATCH]):
            top, left = source.integers(0, 9, 2)
            image = padded[row, top : top + 32, left : left + 32]
            batch[place] = image[:, ::-1] if source.integers(2) else image
        share = source.uniform(0, 1, (BATCH, 1, 1, 1)).astype(np.float32)
        yield share * batch + (1 - share) * batch[source.permutation(BATCH)]


def main(names: list[str]) -> None:
    model, ((train, _), test) = common.resnet8(), common.cifar10()
    few = train[:1024]
    rows = {row[0]: row for row in common.read_rows(HERE / "distill.csv")}
    for name in names:
        if name.startswith("planned"):
            student = tfdwd.decompose(model, few, rank=tfdwd.plan(model, few, latency=0.6))
        else:
            student = tfdwd.decompose(model, few, rank=int(name[-1]), stack="auto")
        before = tfdwd.evaluate(student, test, batch_size=500).top1
        tfdwd.finetune(
            student,
            lambda epoch: augmented(train, epoch),
            steps_per_epoch=len(train) // BATCH,
            epochs=EPOCHS,
            teacher=model,
            learning_rate=3e-3,
        )
        after = tfdwd.evaluate(student, test, batch_size=500).top1
        macs = tfdwd.costs.count(student).macs
        rows[name] = [name, f"{macs / 1e6:.2f}", str(EPOCHS), f"{before:.4f}", f"{after:.4f}"]
        common.write_rows(HERE / "distill.csv", HEADERS, rows.values())
    print(reporting.table(HEADERS, rows.values()))


if __name__ == "__main__":
    main(sys.argv[1:] or STUDENTS)
