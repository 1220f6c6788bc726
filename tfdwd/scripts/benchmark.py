"""Times .tflite files and Keras models side by side on LiteRT.

Example:
  tfdwd-benchmark --model=original=resnet8.tflite --model=student=student.tflite --json=times.json
"""

from pathlib import Path

from absl import flags

import tfdwd
from tfdwd import reporting
from tfdwd.errors import Error
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_multi_string(
    "model",
    None,
    "NAME=FILE or FILE, a .tflite, .keras or .h5 file; give the flag once for each model, the one "
    "to compare with first",
    required=True,
    flag_values=FLAGS,
)
_THREADS = flags.DEFINE_integer(
    "threads", 1, "threads that LiteRT may use", lower_bound=1, flag_values=FLAGS
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 30, "samples of each model", lower_bound=1, flag_values=FLAGS
)
_XNNPACK = flags.DEFINE_bool(
    "xnnpack", True, "whether LiteRT may use XNNPACK, as it does by default", flag_values=FLAGS
)
_JSON = flags.DEFINE_string("json", None, "where to write the result as JSON", flag_values=FLAGS)
_CSV = flags.DEFINE_string("csv", None, "where to write the result as CSV", flag_values=FLAGS)


def main() -> None:
    """Loads, times, prints and writes the report."""
    models = {}
    for given in _MODEL.value:
        name, _, path = given.rpartition("=")
        name = name or Path(path).stem
        if name in models:
            raise Error(f"two models are named {name!r}: give --model=NAME=FILE for each")
        models[name] = path if path.endswith(".tflite") else common.load_model(path)
    report = tfdwd.benchmark(
        models, threads=_THREADS.value, rounds=_ROUNDS.value, xnnpack=_XNNPACK.value, startup=True
    )
    print(report)
    if _CSV.value is not None:
        reporting.write_whole(_CSV.value, report.to_csv())
    if _JSON.value is not None:
        reporting.write_whole(_JSON.value, report.to_json())


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
