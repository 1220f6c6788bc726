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
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_OUTPUT = common.define_output(FLAGS, "output", "the .json file to write", required=True)
_GIVEN = common.define_planning(FLAGS, minutes=2.0)
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


def main() -> None:
    """Loads, plans, writes and prints the plan."""
    plan = tfdwd.plan(
        latency=_LATENCY.value,
        macs=_MACS.value,
        params=_PARAMS.value,
        max_error=_MAX_ERROR.value,
        **_GIVEN(),
    )
    files.write_whole(_OUTPUT.value, plan.to_json())
    print(plan)


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
