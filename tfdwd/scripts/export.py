"""Writes a Keras model as a float32 .tflite file and checks it against Keras.

Example:
  tfdwd-export --model=resnet8.keras --output=resnet8.tflite --images=test.npz --images_key=x_test
"""

from absl import flags

import tfdwd
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model(FLAGS)
_OUTPUT = flags.DEFINE_string(
    "output", None, "the .tflite file to write", required=True, flag_values=FLAGS
)
_IMAGES = common.define_array(
    FLAGS,
    "images",
    "images to compare the file with Keras on (up to 64 are used; without them the file is only "
    "opened)",
)


def main() -> None:
    """Loads, exports, prints the report."""
    data = _IMAGES()
    print(tfdwd.export(_MODEL(), _OUTPUT.value, data=data))


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
