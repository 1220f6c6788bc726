"""Writes what a plan times as .tflite files, for another device, or reads what was timed there.

Example:
  tfdwd-micro-models --model=resnet8.keras --folder=micro
  tfdwd-benchmark --adb --benchmark_model=benchmark_model --model=micro --rounds=3 --json=phone.json
  tfdwd-micro-models --folder=micro --log=phone.json --device="my phone" --output=phone-table.json
  tfdwd-plan --model=resnet8.keras --output=plan.json --images=train.npz --images_key=x_train \\
      --latency=0.5 --latency_table=phone-table.json
"""

from absl import flags

import tfdwd
from tfdwd import files
from tfdwd.errors import Error
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_FOLDER = flags.DEFINE_string(
    "folder", None, "of the .tflite files and their manifest", required=True, flag_values=FLAGS
)
_MODEL = common.define_model_file(FLAGS, "model", "to write: the Keras model, a .keras or .h5 file")
_QUANTIZE = common.define_quantize(FLAGS)
_IMAGES = common.define_array(FLAGS, "images", "to write for int8: images to take ranges from")
_INPUT_SHAPE = common.define_input_shape(FLAGS)
_LOG = common.define_inputs(
    FLAGS,
    "log",
    "to read: what benchmark_model or litert-benchmark printed for the files, or the JSON of "
    "tfdwd-benchmark; may be given several times",
)
_DEVICE = flags.DEFINE_string("device", "", "to read: what was measured on", flag_values=FLAGS)
_OUTPUT = common.define_output(
    FLAGS, "output", "to read: the .json file to write the latency table to"
)


def main() -> None:
    """Writes the files, or reads the logs."""
    if (_MODEL.value is None) == (_LOG.value is None):
        raise Error("expected --model, to write the files, or --log, to read what was timed")
    if _MODEL.value is not None:
        shape, images = _INPUT_SHAPE(), _IMAGES()
        model = common.load_model(_MODEL.value)
        count = tfdwd.write_micro_models(
            model, _FOLDER.value, quantize=_QUANTIZE.value, data=images, input_shape=shape
        )
        print(f"{_FOLDER.value}: {count} .tflite files; time each of them on the device")
        return
    if _OUTPUT.value is None:
        raise Error("expected --output=FILE.json for the latency table")
    table = tfdwd.read_latency_table(_FOLDER.value, _LOG.value, _DEVICE.value)
    files.write_whole(_OUTPUT.value, table.to_json())
    print(
        f"{_OUTPUT.value}: {len(table.layers)} kinds of layers, the network in "
        f"{table.network_ms:.3f} ms; {table.runtime}, {table.threads} thread(s), quantised: "
        f"{table.quantize}"
    )


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
