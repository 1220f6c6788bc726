"""Measures the accuracy of a Keras model or a .tflite file on labelled images.

Example:
  tfdwd-evaluate --model=resnet8.tflite --images=test.npz --images_key=x_test \\
      --labels=test.npz --labels_key=y_test
"""

from absl import flags

import tfdwd
from tfdwd import files
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model_file(FLAGS, "model", "a .keras, .h5 or .tflite file", required=True)
_IMAGES = common.define_array(FLAGS, "images", "the images", required=True)
_LABELS = common.define_array(
    FLAGS, "labels", "the labels, class numbers or one-hot", required=True
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "images that Keras runs at once", lower_bound=1, flag_values=FLAGS
)
_JSON = common.define_output(FLAGS, "json", "where to write the result as JSON")


def main() -> None:
    """Loads, evaluates, prints and writes the result."""
    path = _MODEL.value
    if path.endswith(".tflite"):
        common.check_tflite([path])
    images, labels = _IMAGES(), _LABELS()
    model = path if path.endswith(".tflite") else common.load_model(path)
    result = tfdwd.evaluate(model, (images, labels), batch_size=_BATCH_SIZE.value)
    if _JSON.value is not None:
        files.write_whole(_JSON.value, result.to_json())
    print(result)


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
