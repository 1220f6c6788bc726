"""Times .tflite files on a phone, through adb: with benchmark_model or in the demo app."""

import contextlib
import dataclasses
import datetime
import hashlib
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfdwd import benchmarking, checks, logs, records
from tfdwd.benchmarking import BenchmarkReport
from tfdwd.errors import Error
from tfdwd.shapes import InputShape

if TYPE_CHECKING:
    import keras

_TIMEOUT_SECONDS = 600  # of one command: a large model is run 50 times
APP = "org.tfdwd.demo"  # the id of the app of android_demo
_FOLDER = f"/sdcard/Android/data/{APP}/files"  # its own, which takes no permission to write to
_POLL_SECONDS = 1.0
_TOO_OLD = ("Didn't find op for builtin opcode", "old TFLite binary", "builtin_code out of range")
_CANNOT_RUN = ("not executable", "xec format error", "CANNOT LINK EXECUTABLE", "No such file")
_LOST = ("not found", "offline", "closed")  # what adb says of a phone that is gone


def benchmark(
    models: Mapping[str, "str | os.PathLike[str] | bytes | keras.Model"],
    *,
    benchmark_model: str | os.PathLike[str],
    serial: str | None = None,
    threads: int = 1,
    xnnpack: bool = True,
    rounds: int = 5,
    input_shape: InputShape | None = None,
) -> BenchmarkReport:
    """Times models on a phone, interleaved like `tfdwd.benchmark`.

    Each sample is one start of benchmark_model, which runs the model 50 times and for a second at
    least. What is pushed goes to a new folder under /data/local/tmp and is removed at the end.

    Args:
      models: as for `tfdwd.benchmark`.
      benchmark_model: TensorFlow's (or LiteRT's) tool, built for the phone.
      serial: of the phone, where adb sees several.
      threads, xnnpack: as for `tfdwd.benchmark`.
      rounds: samples of each model.
      input_shape: as for `tfdwd.benchmark`.

    Returns:
      The timings, with time to load, first run and memory as benchmark_model tells them.

    Raises:
      tfdwd.Error: no adb, no phone or several, a phone that has not allowed this computer, a
        benchmark_model that does not run there or is too old for a model, or a connection that was
        lost.

    Example:
      >>> print(benchmark({"student": "student.tflite"}, benchmark_model="benchmark_model"))
      ... # doctest: +SKIP

    Source of the tool: tensorflow/lite/tools/benchmark/README.md.
    """
    tool = checks.path("benchmark_model", benchmark_model)
    if not os.path.isfile(tool):
        raise Error(
            f"{tool}: no such file; download or build benchmark_model for the phone's processor "
            "(TensorFlow's page on measuring performance says where)"
        )
    benchmarking.check(models, threads, rounds=rounds)
    checks.switches(xnnpack=xnnpack)
    contents = [benchmarking.content_of(model, input_shape) for model in models.values()]
    serial = _only_phone(serial)
    device = " ".join(_property(serial, f"ro.product.{what}") for what in ("manufacturer", "model"))
    folder = f"/data/local/tmp/tfdwd-{secrets.token_hex(4)}"
    seconds = np.zeros((rounds, len(contents)))
    runs: list[list[logs.Run]] = [[] for _ in contents]
    _adb(serial, "shell", f"mkdir -p {folder}")
    try:
        with tempfile.TemporaryDirectory() as local:
            for index, content in enumerate(contents):
                (Path(local) / f"{index}.tflite").write_bytes(content)
                _adb(serial, "push", f"{local}/{index}.tflite", f"{folder}/{index}.tflite")
            _adb(serial, "push", os.fspath(tool), f"{folder}/benchmark_model")
            _adb(serial, "shell", f"chmod +x {folder}/benchmark_model")
            for number, index in benchmarking.interleaved(rounds, len(contents)):
                command = (
                    f"cd {folder} && ./benchmark_model --graph={index}.tflite "
                    f"--num_threads={threads} --use_xnnpack={str(xnnpack).lower()} > log 2>&1"
                )
                _adb(serial, "shell", f"{command}; true")  # the log tells what went wrong
                _adb(serial, "pull", f"{folder}/log", f"{local}/log")
                log = (Path(local) / "log").read_text(errors="replace")
                runs[index].append(_run(log, list(models)[index], tool, serial))
                seconds[number, index] = runs[index][-1].ms / 1000
    finally:
        with contextlib.suppress(Error):  # the phone may be gone
            _adb(serial, "shell", f"rm -rf {folder}")
    return BenchmarkReport(
        timings=tuple(
            dataclasses.replace(
                benchmarking.timing_of(name, len(content), seconds[:, index], seconds[:, 0]),
                load_ms=_median(runs[index], "load_ms"),
                first_ms=_median(runs[index], "first_ms"),
                peak_kib=_median(runs[index], "peak_kib"),
            )
            for index, (name, content) in enumerate(zip(models, contents, strict=True))
        ),
        device=device,
        threads=threads,
        rounds=rounds,
        runtime=f"benchmark_model {hashlib.sha256(tool.read_bytes()).hexdigest()[:12]}",
        xnnpack=xnnpack,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def benchmark_app(
    *, serial: str | None = None, threads: int = 1, rounds: int = 30
) -> BenchmarkReport:
    """Times the two models inside the app of android_demo, as that app's screen does.

    The app is opened on the phone, which must be unlocked, and must stay in front until the end.

    Args:
      serial: of the phone, where adb sees several.
      threads: that the app gives to LiteRT.
      rounds: samples of each model.

    Returns:
      The timings, as the app wrote them.

    Raises:
      tfdwd.Error: as `benchmark` of the phone and the connection; or the app is not installed, does
        not come to an end in ten minutes, or tells why it could not do it.

    Example:
      >>> print(benchmark_app())  # doctest: +SKIP
    """
    benchmarking.check({"the app's own": APP}, threads=threads, rounds=rounds)
    serial = _only_phone(serial)
    if not _adb(serial, "shell", f"pm path {APP}; true").strip():
        raise Error(
            f"phone {serial} has no app {APP}: build it with android_demo/build_apk, then "
            "adb install -r android_demo/build/tfdwd-demo.apk"
        )
    name = f"tfdwd-{secrets.token_hex(4)}.json"
    text = ""
    said = _adb(
        serial,
        "shell",
        f"am start -n {APP}/.BenchmarkActivity --es output {name} --es threads {threads} "
        f"--es rounds {rounds} 2>&1; true",
    )
    if "Error" in said:
        raise Error(f"phone {serial} does not start the app: {' '.join(said.split())[-200:]}")
    end = time.monotonic() + _TIMEOUT_SECONDS
    try:
        # The app renames the file when it is whole.
        while not (text := _adb(serial, "shell", f"cat {_FOLDER}/{name} 2>/dev/null; true")):
            if time.monotonic() > end:
                raise Error(
                    f"the app on phone {serial} has not finished after {_TIMEOUT_SECONDS} "
                    "seconds: fewer rounds, or look at its screen"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        with contextlib.suppress(Error):  # the phone may be gone
            _adb(serial, "shell", f"rm -f {_FOLDER}/{name}")
            if not text:
                _adb(serial, "shell", f"am force-stop {APP}")
    if text.startswith('{"error"'):
        raise Error(f"the app on phone {serial} says: {records.loads(text)['error']}")
    return BenchmarkReport.from_json(text)


def _median(runs: list[logs.Run], field: str) -> float | None:
    found = [getattr(run, field) for run in runs]
    return None if None in found else float(np.median(found))


def _only_phone(serial: str | None) -> str:
    """The serial number of the phone to use."""
    lines = _adb(None, "devices").splitlines()[1:]
    states = dict(line.split(None, 1) for line in lines if len(line.split(None, 1)) == 2)
    if not states:
        raise Error("adb sees no phone: plug one in and switch on USB debugging on it")
    if serial is None and len(states) > 1:
        raise Error(
            f"adb sees {len(states)} phones, {', '.join(states)}: name one with serial (--serial)"
        )
    chosen = next(iter(states)) if serial is None else serial
    if chosen not in states:
        raise Error(f"adb does not see the phone {chosen}, only {', '.join(states)}")
    state = states[chosen].strip()
    if state == "unauthorized":
        raise Error(f"phone {chosen} is locked to this computer: allow USB debugging on its screen")
    if state != "device":
        raise Error(f"phone {chosen} is {state}, expected one that is ready: plug it in again")
    return chosen


def _property(serial: str, name: str) -> str:
    return _adb(serial, "shell", f"getprop {name}").strip()


def _run(log: str, model: str, tool: Path, serial: str) -> logs.Run:
    """The one run in a log, or why there is none."""
    for line in map(str.strip, log.splitlines()):
        if any(words in line for words in _TOO_OLD):
            raise Error(f"{tool} is too old for {model}: it says {line!r}; get a newer one")
        if "./benchmark_model" in line and any(words in line for words in _CANNOT_RUN):
            raise Error(
                f"{tool} does not run on the phone, a {_property(serial, 'ro.product.cpu.abi')}: "
                f"it says {line!r}; get the one for that processor"
            )
    try:
        [run] = logs.read(log)
    except Error as error:
        raise Error(f"{model} on the phone {serial}: {error}") from error
    return run


def _adb(serial: str | None, *arguments: str) -> str:
    """What adb prints; an error if it fails, as when the phone is gone."""
    command = ["adb", *(["-s", serial] if serial else []), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise Error("there is no adb on the PATH: install Android's platform tools") from error
    except subprocess.TimeoutExpired as error:
        raise Error(
            f"the phone has not answered for {_TIMEOUT_SECONDS} seconds to adb {arguments[0]}"
        ) from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-200:]
        what = f"adb {arguments[0]} failed"
        if serial and any(sign in words for sign in _LOST):
            what = f"the connection to phone {serial} was lost"
        raise Error(f"{what}: {words}; nothing was measured")
    return done.stdout
