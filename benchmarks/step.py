"""What a step of `tfdwd.finetune` costs beside a plain Keras step and the teacher's answers.

    python benchmarks/step.py                       (3 to 15 minutes on two cores)

The ResNet-8 of MLPerf Tiny teaches its students with stack="auto", ranks 1 and 2, on batches of 64
of its training images. "plain" is `teacher.predict_on_batch`, then `student.train_on_batch` of the
compiled student with the cross-entropy against these answers and AdamW, and nothing else. In turns,
ROUNDS times: STEPS steps of either, of which the first ones, which compile, are left out. The
ratio is that of the medians in each round; the least and the highest are those of the rounds.
"with moves" is the default: images mirrored, shifted and mixed. Wanted: at most 1.1. Writes
step.csv beside this file. Needs TFDWD_DATA.
"""

import os
import pathlib
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import numpy as np

import tfdwd
from tfdwd import reporting
from tfdwd.training.augmentation import Moves

TABLE = pathlib.Path(__file__).resolve().parent / "step.csv"
HEADERS = ["student", "finetune", "plain ms", "ms", "ratio", "least", "highest"]
BATCH, STEPS, FIRST, ROUNDS = 64, 40, 10, 7
MOVES = Moves(mirrors=True, shifts=(4, 4), mixes=True)


def ours(student, teacher, images, moves: Moves | None) -> float:
    """Median seconds of a step, from batch to batch."""
    source, begun = np.random.default_rng(0), []

    def noted(batch: np.ndarray) -> np.ndarray:
        begun.append(time.perf_counter())
        return batch if moves is None else moves(batch, source)

    rows = images[: BATCH * STEPS]
    tfdwd.finetune(student, rows, teacher=teacher, epochs=1, augment=noted, validation=None)
    return statistics.median(np.diff(begun)[FIRST:])


def plain(student, teacher, images) -> float:
    student.compile(keras.optimizers.AdamW(1e-3), keras.losses.CategoricalCrossentropy())
    begun = []
    for start in range(0, BATCH * STEPS, BATCH):
        begun.append(time.perf_counter())
        batch = images[start : start + BATCH]
        student.train_on_batch(batch, teacher.predict_on_batch(batch))
    return statistics.median(np.diff(begun)[FIRST:])


def main() -> None:
    model, ((images, _), _) = common.resnet8(), common.cifar10()
    rows = []
    for rank in (1, 2):
        start = tfdwd.decompose(model, images[:256], rank=rank, stack="auto")
        ways: dict[str, Callable[[], float]] = {
            "plain": lambda start=start: plain(tfdwd.flatten(start), model, images),
            "as they are": lambda start=start: ours(tfdwd.flatten(start), model, images, None),
            "with moves": lambda start=start: ours(tfdwd.flatten(start), model, images, MOVES),
        }
        found = [{way: run() for way, run in ways.items()} for _ in range(ROUNDS)]
        for way in ("as they are", "with moves"):
            ratios = [seconds[way] / seconds["plain"] for seconds in found]
            both = (statistics.median(s[name] for s in found) for name in ("plain", way))
            rows.append([
                f"auto {rank}", way, *(f"{1e3 * seconds:.1f}" for seconds in both),
                f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}",
            ])  # fmt: skip
            print(*rows[-1], sep=", ", flush=True)
    common.write_rows(TABLE, HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
