"""Writes a Keras model as a float32 .tflite file and checks it against Keras.

Example:
  tfdwd-export --model=resnet8.keras --output=resnet8.tflite --images=test.npz --images_key=x_test
"""

from absl import flags

import tfdwd
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model", None, "the Keras model, a .keras or .h5 file", required=True, flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "the .tflite file to write", required=True, flag_values=FLAGS
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "images to compare the file with Keras on, a .npy or .npz file (up to 64 are used); without "
    "them the file is only opened",
    flag_values=FLAGS,
)
_IMAGES_KEY = flags.DEFINE_string(
    "images_key", None, "which array of a .npz file holds the images", flag_values=FLAGS
)


def main() -> None:
    """Loads, exports, prints the report."""
    data = None
    if _IMAGES.value is not None:
        data = common.load_array(_IMAGES.value, _IMAGES_KEY.value, "images_key")
    model = common.load_model(_MODEL.value)
    print(tfdwd.export(model, _OUTPUT.value, data=data))


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
