"""Expands a trained network's regular convolutions into depthwise + pointwise stacks.

Example:
  tfdwd-decompose --model=resnet8.keras --output=student.keras --images=train.npz \\
      --images_key=x_train --rank=1
"""

from absl import flags

import tfdwd
from tfdwd import files, workers
from tfdwd.errors import Error
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model(FLAGS)
_OUTPUT = common.define_output(
    FLAGS, "output", "the .keras file to write", suffix=".keras", required=True
)
_IMAGES = common.define_array(
    FLAGS,
    "images",
    "calibration images (1,000 are plenty, labels are not needed; without them each kernel is "
    "approximated for itself, which loses far more)",
)
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images", 1024, "how many of the images to use, from the first", 1, flag_values=FLAGS
)
_RANK = flags.DEFINE_integer(
    "rank", 1, "depthwise filters per channel; 1 is the cheapest", 1, flag_values=FLAGS
)
_PLAN = common.define_input(
    FLAGS,
    "plan",
    "a .json file of tfdwd-plan, edited or not, or of tfdwd-tradeoff with --latency; instead of "
    "--rank, --stack, --include, --exclude",
)
_LATENCY = flags.DEFINE_float(
    "latency", None, "of a tradeoff the best plan within this part of the original's time",
    flag_values=FLAGS,
)  # fmt: skip
_STACK = flags.DEFINE_enum(
    "stack",
    "separable",
    ["separable", "bottleneck", "auto"],
    "separable: depthwise, pointwise; bottleneck: pointwise, depthwise, pointwise at no more "
    "MACs; auto: for each layer the better of the two",
    flag_values=FLAGS,
)
_METHOD = flags.DEFINE_enum(
    "method",
    None,
    ["svd", "gsvd", "sequential", "joint", "channel"],
    "how the stacks are fitted: joint if there are images, svd if not",
    flag_values=FLAGS,
)
_INCLUDE, _EXCLUDE = common.define_selection(FLAGS)
_REPORT = common.define_output(FLAGS, "report", "a .json file for one record per convolution")
_STRATEGY = common.define_strategy(FLAGS, ["none", "multiworker"])
_SEED = flags.DEFINE_integer("seed", 0, "of the sampled positions", flag_values=FLAGS)


def main() -> None:
    """Loads, decomposes, writes, prints the report."""
    _STRATEGY()
    plan = _plan()
    if plan is not None and FLAGS["rank"].present:
        raise Error("--plan says the rank of each layer: expected no --rank beside it")
    data = _IMAGES()
    if data is not None:
        data = data[: _MAX_IMAGES.value][workers.index() :: workers.count()]
    model = _MODEL()
    student, report = tfdwd.decompose(
        model,
        data,
        rank=_RANK.value if plan is None else plan,
        stack=_STACK.value,
        method=_METHOD.value,
        include=_INCLUDE.value,
        exclude=_EXCLUDE.value,
        seed=_SEED.value,
        return_report=True,
    )
    if workers.index():
        return  # the first writes
    files.save_model(student, _OUTPUT.value)
    if _REPORT.value is not None:
        files.write_whole(_REPORT.value, report.to_json())
    print(report)


def _plan() -> tfdwd.Plan | None:
    if _PLAN.value is None or _LATENCY.value is None:
        if _LATENCY.value is not None:
            raise Error(
                "--latency chooses among the plans of a tradeoff: expected --plan beside it"
            )
        return None if _PLAN.value is None else common.load_record(tfdwd.Plan, _PLAN.value)
    return common.load_record(tfdwd.Tradeoff, _PLAN.value).plan(_LATENCY.value)


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
