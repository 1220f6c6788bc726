"""Where the time of `plan` and `decompose` goes, by stages, for small and large networks.

    python benchmarks/stages.py                  (half an hour on two cores)
    python benchmarks/stages.py resnet8 resnet50

For the ResNet-8 of MLPerf Tiny (1,024 images of CIFAR-10; needs TFDWD_DATA) and ResNet50,
InceptionV3 and VGG16 of keras.applications (64 random images of 224 px, random weights): plans for
0.7 of the time with an empty cache, then for 0.6 of it with what the first plan found out, as
`tradeoff` does, and decomposes by the first plan; each network in a process of its own. Twenty
times a second it is looked up which stage runs. Expected: at most 5 minutes for ResNet50 and 8 for
the other two, 30 s for the second budget, 4 GiB. Writes stages.csv beside this file, whose columns
of the same networks are replaced.
"""

import contextlib
import csv
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import numpy as np

from tfdwd import decomposition, planning, problem, reporting
from tfdwd.search import budget_of

PATH = pathlib.Path(__file__).resolve().parent / "stages.csv"
SECONDS = 0.05
# (stage, module, function, module that it reached); the first that fits counts.
STAGES = (
    ("students: decomposed and compared", "problem", "likeness", ""),
    ("students: converted", "times", "student", "conversion"),
    ("students: timed", "times", "student", "benchmarking"),
    ("layers: converted", "times", "layer", "conversion"),
    ("layers: timed", "times", "layer", "benchmarking"),
    ("candidates fitted", "problem", "_fitted", ""),
    ("Fisher metric", "problem", "_losses", "_fisher"),
    ("responses and moments", "problem", "_losses", ""),
    ("decompose", "decomposition", "decompose", ""),
)
WHOLE = (
    "plan", "second budget", "decompose by the plan", "peak MiB of the plans", "peak MiB"
)  # fmt: skip
ROWS = (*WHOLE, *dict.fromkeys(stage for stage, *_ in STAGES[:-1]), "rest of both plans")


def resnet8() -> tuple[keras.Model, np.ndarray]:
    (images, _), _ = common.cifar10()
    return common.resnet8(), images[:1024]


def large(name: str) -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
    images = np.random.default_rng(0).normal(size=(64, 224, 224, 3))
    return model, images.astype(np.float32)


NETWORKS = {
    "resnet8": resnet8,
    "resnet50": lambda: large("ResNet50"),
    "inceptionv3": lambda: large("InceptionV3"),
    "vgg16": lambda: large("VGG16"),
}


def stage() -> str:
    """What the main thread does now."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    calls = set()
    while frame is not None:
        calls.add((pathlib.Path(frame.f_code.co_filename).stem, frame.f_code.co_name))
        frame = frame.f_back
    modules = {module for module, _ in calls}
    for name, module, function, reached in STAGES:
        if (module, function) in calls and (not reached or reached in modules):
            return name
    return "rest of both plans"


@contextlib.contextmanager
def watched() -> Iterator[Counter[str]]:
    """Seconds by stage, of what is done inside."""
    found: Counter[str] = Counter()
    done = threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.wait(SECONDS):
            now = time.perf_counter()
            found[stage()] += now - last
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str) -> None:
    """Prints a line "row, tab, figure" for each of `ROWS`."""
    model, images = NETWORKS[name]()
    seconds = {}
    with watched() as found, tempfile.TemporaryDirectory() as folder:
        with contextlib.ExitStack() as spools:
            start = time.perf_counter()
            known = problem.prepared(
                model, images, spools, quantize="none", threads=1, include=None, exclude=None,
                cache=f"{folder}/latency.json", table=None, input_shape=None, images=None, seed=0,
                by_time=True,
            )  # fmt: skip
            plan = planning._planned(known, budget_of({"latency": 0.7}), 2.0)
            seconds["plan"] = time.perf_counter() - start
            start = time.perf_counter()
            planning._planned(known, budget_of({"latency": 0.6}), 0.0)
            seconds["second budget"] = time.perf_counter() - start
        found["peak MiB of the plans"] = peak()
        start = time.perf_counter()
        decomposition.decompose(model, images, rank=plan)
        seconds["decompose by the plan"] = time.perf_counter() - start
    found["peak MiB"] = peak()
    for row in ROWS:
        print(f"{row}\t{ {**found, **seconds}.get(row, 0):.1f}")


def main(names: list[str]) -> None:
    columns: dict[str, list[str]] = {}
    if PATH.is_file():
        with open(PATH, newline="") as file:
            for name, *figures in list(zip(*csv.reader(file), strict=True))[1:]:
                columns[name] = figures
    for name in names:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        columns[name] = [line.split("\t")[1] for line in done.stdout.splitlines() if "\t" in line]
        print(name, *zip(ROWS, columns[name], strict=True), sep="\n  ", flush=True)
        known = [network for network in NETWORKS if network in columns]
        rows = [[row, *(columns[n][i] for n in known)] for i, row in enumerate(ROWS)]
        common.write_rows(PATH, ["seconds", *known], rows)
    print(reporting.table(["seconds", *known], rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2])
    else:
        main(sys.argv[1:] or list(NETWORKS))
