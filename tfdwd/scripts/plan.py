"""Chooses which layers of a network to replace by what, by measured time; writes a plan.

Example:
  tfdwd-plan --model=resnet8.keras --output=plan.json --images=train.npz --images_key=x_train \\
      --latency=0.5
  tfdwd-decompose --model=resnet8.keras --output=student.keras --images=train.npz \\
      --images_key=x_train --plan=plan.json
"""

from absl import flags

import tfdwd
from tfdwd import files
from tfdwd.conversion import QUANTIZATIONS
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model(FLAGS)
_OUTPUT = common.define_output(FLAGS, "output", "the .json file to write", required=True)
_IMAGES = common.define_array(
    FLAGS, "images", "calibration images (1,000 are plenty, labels are not needed)", required=True
)
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images", 1024, "how many of the images to use, from the first", 1, flag_values=FLAGS
)
_LATENCY = flags.DEFINE_string(
    "latency", None, "budget: a part of the original's time (0.5) or 1.5ms", flag_values=FLAGS
)
_MACS = flags.DEFINE_float(
    "macs", None, "budget: MACs, or a part of the original's up to 1", flag_values=FLAGS
)
_PARAMS = flags.DEFINE_float(
    "params", None, "budget: parameters, or a part of the original's up to 1", flag_values=FLAGS
)
_MAX_ERROR = flags.DEFINE_float(
    "max_error", None, "budget: predicted loss in nats for each image", flag_values=FLAGS
)
_QUANTIZE = flags.DEFINE_enum(
    "quantize", "none", list(QUANTIZATIONS), "the precision to be deployed", flag_values=FLAGS
)
_THREADS = flags.DEFINE_integer(
    "threads", 1, "that LiteRT will be given", lower_bound=1, flag_values=FLAGS
)
_TABLE = common.define_input(
    FLAGS,
    "latency_table",
    "times from another device, a .json file of tfdwd-micro-models; nothing is timed here then",
)
_CACHE = common.define_cache(
    FLAGS,
    "cache",
    "the .json file that keeps times measured here, for other plans; by default "
    "~/.cache/tfdwd/latency.json, or in $XDG_CACHE_HOME",
)
_MINUTES = flags.DEFINE_float(
    "minutes", 2.0, "after this time no other student is decomposed and compared", flag_values=FLAGS
)
_INPUT_SHAPE = common.define_input_shape(FLAGS)


def main() -> None:
    """Loads, plans, writes and prints the plan."""
    table, shape = None, _INPUT_SHAPE()
    if _TABLE.value is not None:
        table = common.load_record(tfdwd.LatencyTable, _TABLE.value)
    images = _IMAGES()
    assert images is not None  # the flag is required
    plan = tfdwd.plan(
        _MODEL(),
        images[: _MAX_IMAGES.value],
        latency=_LATENCY.value,
        macs=_MACS.value,
        params=_PARAMS.value,
        max_error=_MAX_ERROR.value,
        quantize=_QUANTIZE.value,
        threads=_THREADS.value,
        cache=_CACHE.value,
        latency_table=table,
        input_shape=shape,
        minutes=_MINUTES.value,
    )
    files.write_whole(_OUTPUT.value, plan.to_json())
    print(plan)


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
