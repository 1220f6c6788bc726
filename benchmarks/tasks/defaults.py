"""The three tasks fine-tuned by the defaults of `tfdwd.finetune`: is any student worse after?

    python benchmarks/tasks/defaults.py                  (all three; an hour of one core)
    python benchmarks/tasks/defaults.py segmentation

For each of `tasks.TASKS` decomposes with stack="auto" at rank 1 and 2 on 256 calibration images,
and fine-tunes on these, `tfdwd.finetune(student, images, teacher=model)`, from three seeds. "held
back" is the loss against the original on the tenth of these images that is not trained on, "score"
that of the student on 1,024 other calibration images; no test image is used. Networks that
build/tasks does not have are trained (`train.py`). Needs TFDWD_DATA and Debian's package dataset-
fashion-mnist. Writes defaults.csv beside this file, a row for each run, which are not run again.
"""

import itertools
import pathlib
import sys
from collections.abc import Iterator

import keras
from tasks import TASKS, Task
from train import train

import tfdwd
from tfdwd import reporting

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402

TABLE = HERE / "defaults.csv"
IMAGES, OTHERS = 256, 1024
RANKS, SEEDS = (1, 2), (0, 1, 2)
HEADERS = [
    "task", "score", "rank", "seed", "original", "before", "after", "held back before",
    "held back after",
]  # fmt: skip


def rows_of(task: Task, done: set[tuple[str, ...]]) -> Iterator[list[str]]:
    """Rows of the table for one task that are not there yet."""
    model = train(task)
    images, labels = task.examples("calibration")
    few, others = images[:IMAGES], (images[-OTHERS:], labels[-OTHERS:])

    def score(network: keras.Model) -> str:
        return f"{tfdwd.evaluate(network, others, metric=task.metric).scores[0].value:.4f}"

    for rank, seed in itertools.product(RANKS, SEEDS):
        key = task.name, task.score, str(rank), str(seed)
        if key in done:
            continue
        student = tfdwd.decompose(model, few, rank=rank, stack="auto")
        before = score(student)
        told = tfdwd.finetune(student, few, teacher=model, seed=seed)
        held = [f"{measured['val_loss']:.4g}" for measured in (told.before, told.after)]
        yield [*key, score(model), before, score(student), *held]


def main(names: list[str]) -> None:
    done = {tuple(row[:4]) for row in common.read_rows(TABLE)}
    chosen = [task for task in TASKS if task.name in names]
    new = itertools.chain.from_iterable(rows_of(task, done) for task in chosen)
    rows = common.add_rows(TABLE, HEADERS, new)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main(sys.argv[1:] or [task.name for task in TASKS])
