"""Writes a Keras model as a .tflite file, quantised or not, and checks it against Keras.

Example:
  tfdwd-export --model=resnet8.keras --output=resnet8.tflite --quantize=int8 \\
      --images=train.npz --images_key=x_train
"""

from absl import flags

import tfdwd
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model(FLAGS)
_OUTPUT = common.define_output(
    FLAGS, "output", "the .tflite file to write", suffix=".tflite", required=True
)
_IMAGES = common.define_array(
    FLAGS,
    "images",
    "images to compare the file with Keras on (up to 64 are used; without them the file is only "
    "opened) and to take the ranges of int8 and int16x8 from (up to 256, at least 32)",
)
_QUANTIZE = common.define_quantize(FLAGS)
_FLOAT_IO = flags.DEFINE_bool(
    "float_io", False, "int8 or int16x8 inside, float32 inputs and outputs", flag_values=FLAGS
)
_INPUT_SHAPE = common.define_input_shape(FLAGS)


def main() -> None:
    """Loads, exports, prints the report."""
    shape, data = _INPUT_SHAPE(), _IMAGES()
    report = tfdwd.export(
        _MODEL(),
        _OUTPUT.value,
        quantize=_QUANTIZE.value,
        float_io=_FLOAT_IO.value,
        data=data,
        input_shape=shape,
    )
    print(report)


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
