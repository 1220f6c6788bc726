"""Measures the accuracy of a Keras model or a .tflite file on labelled images.

Example:
  tfdwd-evaluate --model=resnet8.tflite --images=test.npz --images_key=x_test \\
      --labels=test.npz --labels_key=y_test
"""

from absl import flags

import tfdwd
from tfdwd import reporting
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model", None, "a .keras, .h5 or .tflite file", required=True, flag_values=FLAGS
)
_IMAGES = common.define_array(FLAGS, "images", "the images", required=True)
_LABELS = common.define_array(
    FLAGS, "labels", "the labels, class numbers or one-hot", required=True
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "images that Keras runs at once", lower_bound=1, flag_values=FLAGS
)
_JSON = flags.DEFINE_string("json", None, "where to write the result as JSON", flag_values=FLAGS)


def main() -> None:
    """Loads, evaluates, prints and writes the result."""
    images, labels = _IMAGES(), _LABELS()
    path = _MODEL.value
    model = path if path.endswith(".tflite") else common.load_model(path)
    result = tfdwd.evaluate(model, (images, labels), batch_size=_BATCH_SIZE.value)
    print(result)
    if _JSON.value is not None:
        reporting.write_whole(_JSON.value, result.to_json())


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
