"""Trials that may crash or hang: they run in child processes, in batches, and each one is counted.

A child writes down what it is about to try, then how that ended; so when it dies or hangs, what it
died of is known, and another child goes on behind it.
"""

import collections
import concurrent.futures
import dataclasses
import gc
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAILURES = ("traceback", "crash", "hang")


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was tried, and how it ended.

    Attributes:
      what: in words.
      kind: "ok", "error" (a clear one), or one of FAILURES.
      detail: the message, the traceback or the signal.
    """

    what: str
    kind: str
    detail: str


class Journal:
    """What a child writes."""

    def __init__(self, path: Path):
        self._file = path.open("w")

    def __call__(self, what: str, attempt: Callable[[], str]) -> None:
        """Tries something that returns how it ended ("error: ..." for a clear error)."""
        self._write(what=what)
        try:
            ended = attempt()
            kind = "error" if ended.startswith("error: ") else "ok"
            self._write(kind=kind, detail=ended.removeprefix("error: "))
        except Exception:
            self._write(kind="traceback", detail=traceback.format_exc())

    def _write(self, **entry: str) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def in_children(
    function: str, seeds: range, count: int, folder: Path, seconds: float = 60
) -> list[Trial]:
    """Runs ``function(seed, count, folder, journal)`` in a child for each seed, two at a time.

    Args:
      function: "module:name", of a module in this folder.
      seeds: one for each child; where one dies, its next has a seed beyond them all.
      count: trials of one child.
      folder: a new folder for each child is made in it.
      seconds: that one trial may take before it counts as a hang.

    Returns:
      All trials, in the order of their seeds.
    """

    def finished(seed: int) -> list[Trial]:
        trials: list[Trial] = []
        while len(trials) < count:
            done = _child(function, seed, count - len(trials), folder / f"{seed}", seconds)
            if not done:
                raise RuntimeError(f"{function} tried nothing for the seed {seed}")
            trials += done
            seed += 1000
        return trials

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return [trial for trials in pool.map(finished, seeds) for trial in trials]


def _child(function: str, seed: int, count: int, folder: Path, seconds: float) -> list[Trial]:
    folder.mkdir(parents=True)
    journal = folder.parent / f"{folder.name}.journal"
    journal.touch()
    command = [sys.executable, __file__, function, str(seed), str(count), folder, journal]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "PYTHONPATH": paths}
        )
        hung = False
        while child.poll() is None:
            time.sleep(0.2)
            if time.time() - journal.stat().st_mtime > seconds:
                child.kill()
                child.wait()
                hung = True
    return _read(journal, f"signal or status {child.returncode}", hung)


def _read(journal: Path, code: str, hung: bool) -> list[Trial]:
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    trials = []
    for first, then in zip(entries, [*entries, {}][1:], strict=True):
        if "what" in first:
            if "kind" in then:
                trials.append(Trial(first["what"], then["kind"], then["detail"]))
            else:
                trials.append(Trial(first["what"], "hang" if hung else "crash", code))
    return trials


def figures(trials: list[Trial]) -> str:
    """How many were tried, and how they ended: what a nightly run prints."""
    counts = collections.Counter(trial.kind for trial in trials)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in ("ok", "error", *FAILURES))
    errors = collections.Counter(
        " ".join(trial.detail.split()[:12]) for trial in trials if trial.kind == "error"
    )
    lines = [f"  {number} {text}" for text, number in errors.most_common(25)]
    return "\n".join([f"{len(trials)} tried: {kinds}", *lines])


def check(trials: list[Trial]) -> None:
    """Fails with the first few trials that failed."""
    failed = [trial for trial in trials if trial.kind in FAILURES]
    shown = [f"{trial.kind}: {trial.what}\n{trial.detail}" for trial in failed[:5]]
    assert not failed, "\n\n".join([figures(trials), *shown])


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    # What is imported stays: to pass over it saves a quarter of the time.
    gc.disable()
    function = getattr(importlib.import_module(module), name)
    gc.freeze()
    gc.enable()
    function(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Journal(Path(sys.argv[5])))
