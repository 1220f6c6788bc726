"""Times .tflite files and Keras models side by side, on this machine's LiteRT or on a phone.

With --profile: shows the times of operators that a benchmark tool printed.

Example:
  tfdwd-benchmark --model=original=resnet8.tflite --model=student=student.tflite --json=times.json
  tfdwd-benchmark --adb --benchmark_model=android_aarch64_benchmark_model --model=student.tflite
  tfdwd-benchmark --adb --app
  tfdwd-benchmark --model=student.tflite --accelerator=gpu
  tfdwd-benchmark --profile=log.txt --model=student.tflite --model=k=student.keras --plan=plan.json
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

import tfdwd
from tfdwd import adb, files, lite
from tfdwd.errors import Error
from tfdwd.scripts import common

if TYPE_CHECKING:
    import keras

FLAGS = flags.FlagValues()
_MODEL = common.define_named_inputs(
    FLAGS,
    "model",
    "NAME=FILE or FILE, a .tflite, .keras or .h5 file, or a folder of .tflite files; give the flag "
    "once for each model, the one to compare with first",
)
_THREADS = flags.DEFINE_integer(
    "threads", 1, "threads that LiteRT may use", lower_bound=1, flag_values=FLAGS
)
_ROUNDS = flags.DEFINE_integer(
    "rounds",
    None,
    "samples of each model (default: 30, with benchmark_model 5)",
    lower_bound=1,
    flag_values=FLAGS,
)
_XNNPACK = flags.DEFINE_bool(
    "xnnpack", True, "whether LiteRT may use XNNPACK, as it does by default", flag_values=FLAGS
)
_ACCELERATOR = flags.DEFINE_enum(
    "accelerator",
    None,
    lite.ACCELERATORS,
    "run the models with LiteRT's CompiledModel on this; the CPU runs what it cannot (default: run "
    "them with LiteRT's Interpreter, on the CPU)",
    flag_values=FLAGS,
)
_ADB = flags.DEFINE_bool("adb", False, "time on a phone, through adb", flag_values=FLAGS)
_TOOL = common.define_input(
    FLAGS, "benchmark_model", "with --adb: TensorFlow's tool of that name, built for the phone"
)
_APP = flags.DEFINE_bool(
    "app",
    False,
    "with --adb: time the two models inside the app of android_demo, in that app",
    flag_values=FLAGS,
)
_SERIAL = flags.DEFINE_string(
    "serial", None, "with --adb: which phone, where there are several", flag_values=FLAGS
)
_INPUT_SHAPE = common.define_input_shape(FLAGS)
_PROFILE = common.define_input(
    FLAGS,
    "profile",
    "a log with times of operators: of benchmark_model with --enable_op_profiling=true, or of "
    "LiteRT's with --use_profiler=true; --model then names the .tflite file that was timed and the "
    "Keras model that it was made from, if they are at hand",
)
_PLAN = common.define_input(
    FLAGS, "plan", "with --profile: a plan, as tfdwd-plan writes it, to show the times beside"
)
_MODEL_EXPLORER = common.define_output(
    FLAGS, "model_explorer", "with --profile: where to write node data for Model Explorer, as JSON"
)
_JSON = common.define_output(FLAGS, "json", "where to write the result as JSON")
_CSV = common.define_output(FLAGS, "csv", "where to write the result as CSV")


def main() -> None:
    """Loads, times, prints and writes the report."""
    if _PROFILE.value is not None:
        _show_profile()
        return
    if _PLAN.value is not None or _MODEL_EXPLORER.value is not None:
        raise Error("--plan and --model_explorer: expected --profile with them")
    rounds = {} if _ROUNDS.value is None else {"rounds": _ROUNDS.value}
    if _ADB.value and _ACCELERATOR.value is not None:
        raise Error("--accelerator: expected no --adb, which times with tools of its own")
    if _APP.value:
        if not _ADB.value or _MODEL.value or _TOOL.value or not _XNNPACK.value:
            raise Error(
                "--app: expected --adb and no --model, --benchmark_model or --noxnnpack: the app "
                "times the two models that android_demo/put_models put into it"
            )
        report = adb.benchmark_app(serial=_SERIAL.value, threads=_THREADS.value, **rounds)
    elif _ADB.value:
        if _TOOL.value is None:
            raise Error(
                "--adb: expected --benchmark_model=FILE, TensorFlow's tool for the phone, or --app"
            )
        report = adb.benchmark(
            _models(),
            benchmark_model=_TOOL.value,
            serial=_SERIAL.value,
            threads=_THREADS.value,
            xnnpack=_XNNPACK.value,
            input_shape=_INPUT_SHAPE(),
            **rounds,
        )
    else:
        report = tfdwd.benchmark(
            _models(),
            threads=_THREADS.value,
            xnnpack=_XNNPACK.value,
            startup=True,
            input_shape=_INPUT_SHAPE(),
            accelerator=_ACCELERATOR.value,
            **rounds,
        )
    if _CSV.value is not None:
        files.write_whole(_CSV.value, report.to_csv())
    if _JSON.value is not None:
        files.write_whole(_JSON.value, report.to_json())
    print(report)


def _show_profile() -> None:
    if _ADB.value or _CSV.value is not None or _ACCELERATOR.value is not None:
        raise Error("--profile: expected no --adb, --csv or --accelerator: nothing is timed")
    models = list(_models().values()) if _MODEL.value else []
    paths = [model for model in models if isinstance(model, Path)]
    networks = [model for model in models if not isinstance(model, Path)]
    if len(paths) > 1 or len(networks) > 1:
        raise Error("--profile: expected at most one .tflite file and one Keras model as --model")
    profile = tfdwd.read_profile(
        Path(_PROFILE.value),
        paths[0] if paths else None,
        networks[0] if networks else None,
    )
    plan = None if _PLAN.value is None else common.load_record(tfdwd.Plan, _PLAN.value)
    beside = None if plan is None else profile.beside(plan)
    if _MODEL_EXPLORER.value is not None:
        files.write_whole(_MODEL_EXPLORER.value, profile.to_model_explorer())
    if _JSON.value is not None:
        files.write_whole(_JSON.value, profile.to_json())
    print(profile)
    if beside is not None:
        print(f"\n{beside}")


def _models() -> "dict[str, Path | keras.Model]":
    """What --model names, by name."""
    paths: dict[str, Path] = {}
    for given in _MODEL.value or []:
        name, _, path = given.rpartition("=")
        found = sorted(Path(path).glob("*.tflite")) if os.path.isdir(path) else [Path(path)]
        for file in found:
            own = name or file.stem
            if own in paths:
                raise Error(f"two models are named {own!r}: give --model=NAME=FILE for each")
            paths[own] = file
    if not paths:
        raise Error("expected --model=FILE, a .tflite, .keras or .h5 file or a folder of .tflite")
    for file in paths.values():
        files.check_input(file)
    # A file that was compiled for an NPU cannot run elsewhere, not even to be checked.
    if not _ADB.value and _ACCELERATOR.value != "npu":
        common.check_tflite([os.fspath(x) for x in paths.values() if x.suffix == ".tflite"])
    return {
        name: file if file.suffix == ".tflite" else common.load_model(os.fspath(file))
        for name, file in paths.items()
    }


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
