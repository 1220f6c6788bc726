"""Makes a network faster: plans, decomposes, fine-tunes without labels, exports and measures.

Example:
  tfdwd-compress --model=resnet8.keras --images=train.npz --images_key=x_train --latency=0.5 \\
      --test=test.npz --test_key=x_test --test_labels=test.npz --test_labels_key=y_test \\
      --folder=out
"""

from absl import flags

import tfdwd
from tfdwd import checks
from tfdwd.errors import Error
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model(FLAGS)
_IMAGES = common.define_array(
    FLAGS, "images", "images to calibrate and fine-tune on, without labels", required=True
)
_FOLDER = flags.DEFINE_string(
    "folder",
    None,
    "for plan, networks and result, made if it is not there; repeated, the command goes on where "
    "it was interrupted",
    required=True,
    flag_values=FLAGS,
)
_LATENCY = flags.DEFINE_string(
    "latency", "0.5", "the time: a part of the original's (0.5) or 1.5ms", flag_values=FLAGS
)
_QUANTIZE = common.define_quantize(FLAGS)
_TEST = common.define_array(
    FLAGS,
    "test",
    "images to score the files on; by default a tenth of --images, which is used for nothing else",
)
_TEST_LABELS = common.define_labels(
    FLAGS, "test_labels", "the labels of --test; without them the agreement with the original is"
    " taken",
)  # fmt: skip
_METRIC = flags.DEFINE_string(
    "metric", None, "of the labels, as for tfdwd-evaluate", flag_values=FLAGS
)
_OUTPUTS = common.define_outputs(FLAGS)
_MINUTES = flags.DEFINE_float(
    "minutes",
    None,
    "for plan and fine-tuning; by default by the number of images",
    flag_values=FLAGS,
)
_MAX_LOSS = flags.DEFINE_float(
    "max_loss", None, "what the student may score less, 0.01 for a point", flag_values=FLAGS
)
_THREADS = common.define_threads(FLAGS)
_INCLUDE, _EXCLUDE = common.define_selection(FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "of all that is random", flag_values=FLAGS)


def main() -> None:
    """Loads, compresses and prints what came of it."""
    test, labels = _TEST(), _TEST_LABELS()
    if labels is not None and test is None:
        raise Error("--test_labels: expected --test beside it")
    folder = checks.path("--folder", _FOLDER.value)
    print(
        tfdwd.compress(
            _MODEL(),
            _IMAGES(),
            folder=folder,
            latency=_LATENCY.value,
            quantize=_QUANTIZE.value,
            test=test if labels is None else (test, labels),
            metric=_METRIC.value,
            outputs=_OUTPUTS(),
            minutes=_MINUTES.value,
            max_loss=_MAX_LOSS.value,
            threads=_THREADS.value,
            include=_INCLUDE.value,
            exclude=_EXCLUDE.value,
            seed=_SEED.value,
        )
    )
    print(f"report: {folder / 'report.html'}")


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
