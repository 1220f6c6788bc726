"""Measures a Keras model or a .tflite file against labels, or against another model.

Examples:
  tfdwd-evaluate --model=resnet8.tflite --images=test.npz --images_key=x_test \\
      --labels=test.npz --labels_key=y_test
  tfdwd-evaluate --model=detector.tflite --reference=detector.keras --images=test.npy
  tfdwd-evaluate --model=detector.tflite --images=test.npy --labels=classes=classes.npy \\
      --labels=boxes=boxes.npy --metric=classes=mean_iou --metric=boxes=mse
"""

from absl import flags

import tfdwd
from tfdwd import arrays, files, metrics
from tfdwd.errors import Error
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model_file(FLAGS, "model", "a .keras, .h5 or .tflite file", required=True)
_IMAGES = common.define_array(FLAGS, "images", "the images", required=True)
_LABELS = common.define_named_inputs(
    FLAGS,
    "labels",
    "the labels, a .npy or .npz file: class numbers, one-hot, or what the metric takes; of a model "
    "of several outputs OUTPUT=FILE for each output that is to be measured",
)
_LABELS_KEY = flags.DEFINE_string(
    "labels_key", None, "which array of a .npz file holds the labels", flag_values=FLAGS
)
_REFERENCE = common.define_model_file(
    FLAGS,
    "reference",
    "a .keras, .h5 or .tflite file, such as the original, whose outputs take the place of labels",
)
_METRIC = flags.DEFINE_multi_string(
    "metric",
    [],
    f"{', '.join(metrics.NAMES)}; of one output among several OUTPUT=METRIC; may be repeated; by "
    "default what suits outputs and labels",
    flag_values=FLAGS,
)
_PEAK = flags.DEFINE_float("peak", None, "white minus black, for psnr", flag_values=FLAGS)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "images that Keras runs at once", lower_bound=1, flag_values=FLAGS
)
_JSON = common.define_output(FLAGS, "json", "where to write the result as JSON")


def main() -> None:
    """Loads, evaluates, prints and writes the result."""
    metric, paths = _by_output("metric", _METRIC.value), _by_output("labels", _LABELS.value or [])
    if (paths is None) == (_REFERENCE.value is None):
        raise Error("expected either --labels or --reference")
    for value in _LABELS.value or []:
        files.check_input(value.partition("=")[2] or value)
    named = [_MODEL.value, *([_REFERENCE.value] if _REFERENCE.value else [])]
    common.check_tflite([path for path in named if path.endswith(".tflite")])
    data: object = _IMAGES()
    if isinstance(paths, dict):
        data = (data, {output: _labels_in(path) for output, [path] in paths.items()})
    elif paths is not None:
        data = (data, _labels_in(paths[0]))
    result = tfdwd.evaluate(
        _model_at(_MODEL.value),
        data,
        metric=metric,
        reference=None if _REFERENCE.value is None else _model_at(_REFERENCE.value),
        peak=_PEAK.value,
        batch_size=_BATCH_SIZE.value,
    )
    if _JSON.value is not None:
        files.write_whole(_JSON.value, result.to_json())
    print(result)


def _by_output(flag: str, values: list[str]) -> dict[str, list[str]] | list[str] | None:
    """What a flag says of all outputs, or of each output as OUTPUT=VALUE; None if nothing."""
    named = ["=" in value for value in values]
    if (any(named) and not all(named)) or (flag == "labels" and not any(named) and len(values) > 1):
        raise Error(
            f"--{flag}: expected OUTPUT=... each time where it is given for several outputs"
        )
    if not any(named):
        return values or None
    found: dict[str, list[str]] = {}
    for value in values:
        output, _, rest = value.partition("=")
        found.setdefault(output, []).append(rest)
    for output, rests in found.items():
        if flag == "labels" and len(rests) > 1:
            raise Error(f"--labels: expected one file for the output {output!r}, got {rests}")
    return found


def _labels_in(path: str) -> object:
    return arrays.load(path, _LABELS_KEY.value)


def _model_at(path: str) -> object:
    return path if path.endswith(".tflite") else common.load_model(path)


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
