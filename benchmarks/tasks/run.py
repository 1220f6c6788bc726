"""Three tasks beside classification, the whole way: half the time, and what that costs.

    python benchmarks/tasks/run.py                     (all three)
    python benchmarks/tasks/run.py segmentation
    python benchmarks/tasks/run.py --choose            (scores on held-out calibration images)

For each of `tasks.TASKS`, in float32 and in int8: plans for half of the time, decomposes,
fine-tunes against the original without labels, exports, scores the .tflite files on the test images
and times them side by side. Calibration images serve for all but the scores; what is not a default
of tfdwd was chosen with --choose. Networks that build/tasks does not have are trained (`train.py`).

Wanted: at half the time at most 0.3 dB of PSNR, 1 point of mean IoU and 1 point of AP50 less than
the original's file of the same precision. Needs TFDWD_DATA and Debian's package
dataset-fashion-mnist. Writes tasks.csv beside this file, whose rows of the same tasks are replaced,
and the table of docs/tasks.md.
"""

import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from tasks import TASKS, Task
from train import BUILD, train

import tfdwd
from tfdwd import files, reporting

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402
import tables  # noqa: E402

PAGE = HERE.parent.parent / "docs" / "tasks.md"
CALIBRATION, HELD_OUT, BATCH = 1024, 1024, 32
STEPS, RATE = 2000, 3e-3
HEADERS = [
    "task", "input", "score", "precision", "original", "before fine-tuning", "student", "lost",
    "MACs of the original", "of the student", "original ms", "student ms", "time", "low", "high",
]  # fmt: skip


def unlabelled(images: np.ndarray) -> Callable[[int], Iterator[np.ndarray]]:
    """A function of the epoch that gives its batches, each flipped at random."""

    def epoch_of(epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(epoch)
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = images[order[start : start + BATCH]]
            yield batch[:, :, :: rng.choice([-1, 1])]

    return epoch_of


def rows_of(task: Task, choose: bool) -> Iterator[list[object]]:
    """Rows of the table for one task, one for each precision."""
    model = train(task)
    images, labels = task.examples("calibration")
    test = (images[-HELD_OUT:], labels[-HELD_OUT:]) if choose else task.examples("test")
    images = images[:-HELD_OUT]
    few = images[:CALIBRATION]
    for precision in ("none", "int8"):
        plan = tfdwd.plan(model, few, latency=0.5, quantize=precision, cache=BUILD / "latency.json")
        print(plan, flush=True)
        student = tfdwd.decompose(model, few, rank=plan)
        before = tfdwd.evaluate(student, test, metric=task.metric).scores[0].value
        tfdwd.finetune(
            student, unlabelled(images), epochs=round(STEPS * BATCH / len(images)), teacher=model,
            learning_rate=RATE, steps_per_epoch=len(images) // BATCH, validation=None,
        )  # fmt: skip
        files.save_model(student, BUILD / f"{task.name}-{precision}.keras")
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: f"{folder}/{name}.tflite" for name in ("original", "student")}
            for network, path in ((model, paths["original"]), (student, paths["student"])):
                tfdwd.export(network, path, quantize=precision, data=few[:256])
            scores = {
                name: tfdwd.evaluate(path, test, metric=task.metric).scores[0].value
                for name, path in paths.items()
            }
            timings = tfdwd.benchmark(paths)
        original, timing = timings.timings
        macs = [tfdwd.costs.count(network, images.shape[1:]).macs for network in (model, student)]
        unit, units = task.unit
        yield [
            task.name, "x".join(map(str, images.shape[1:])), task.score,
            {"none": "float32"}.get(precision, precision), f"{scores['original']:.4f}",
            f"{before:.4f}", f"{scores['student']:.4f}",
            f"{units * (scores['original'] - scores['student']):.2f} {unit}", *macs,
            f"{original.median_ms:.3f}", f"{timing.median_ms:.3f}", f"{1 / timing.speed_up:.2f}",
            f"{1 / timing.speed_up_high:.2f}", f"{1 / timing.speed_up_low:.2f}",
        ]  # fmt: skip


def main() -> None:
    choose = "--choose" in sys.argv
    names = [name for name in sys.argv[1:] if name != "--choose"] or [task.name for task in TASKS]
    path = HERE / "tasks.csv"
    rows: list[list[object]] = []
    if not choose:
        rows += [row for row in common.read_rows(path) if row[0] not in names]
    for task in TASKS:
        for row in rows_of(task, choose) if task.name in names else ():
            print(*row, flush=True)
            rows.append(row)
    rows.sort(key=lambda row: [task.name for task in TASKS].index(row[0]))
    print(reporting.table(HEADERS, rows))
    if not choose:
        common.write_rows(path, HEADERS, rows)
        PAGE.write_text(tables.with_tables(PAGE.read_text()))


if __name__ == "__main__":
    main()
