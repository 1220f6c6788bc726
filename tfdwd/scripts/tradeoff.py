"""Plans a network for several times, each measured: what a speed-up costs; writes the plans.

Example:
  tfdwd-tradeoff --model=resnet8.keras --output=tradeoff.json --images=train.npz \\
      --images_key=x_train
  tfdwd-decompose --model=resnet8.keras --output=student.keras --images=train.npz \\
      --images_key=x_train --plan=tradeoff.json --latency=0.4
"""

from absl import flags

import tfdwd
from tfdwd import files
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_OUTPUT = common.define_output(FLAGS, "output", "the .json file to write", required=True)
_GIVEN = common.define_planning(FLAGS, minutes=1.0)
_POINTS = flags.DEFINE_integer(
    "points", 8, "how many plans, from 0.9 of the time to the least", 1, flag_values=FLAGS
)


def main() -> None:
    """Loads, plans, writes and prints the plans."""
    found = tfdwd.tradeoff(points=_POINTS.value, **_GIVEN())
    files.write_whole(_OUTPUT.value, found.to_json())
    print(found)


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
