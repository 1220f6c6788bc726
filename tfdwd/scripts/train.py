"""Fine-tunes a network, from labels, from a teacher, or from both; can go on where it stopped.

Example:
  mkdir run
  tfdwd-train --model=student.keras --teacher=resnet8.keras --images=train.npz \\
      --images_key=x_train --epochs=50 --folder=run --output=tuned.keras
  tfdwd-train --model=student.keras --teacher=original.keras --records=imagenet --first_label=1 \\
      --epochs=10 --folder=run --resume --output=tuned.keras
  TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
              "task": {"type": "worker", "index": 0}}' \\
      tfdwd-train --strategy=multiworker ...    (and the same with index 1 on 10.0.0.2)
"""

from typing import Any

from absl import flags

import tfdwd
from tfdwd import reporting, workers
from tfdwd.errors import Error
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model(FLAGS)
_OUTPUT = flags.DEFINE_string(
    "output", None, "the .keras file to write", required=True, flag_values=FLAGS
)
_TEACHER = flags.DEFINE_string(
    "teacher", None, "the Keras model to learn from, such as the original", flag_values=FLAGS
)
_IMAGES = common.define_array(FLAGS, "images", "images to train on")
_LABELS = common.define_array(FLAGS, "labels", "their labels; not needed with a teacher")
_RECORDS = flags.DEFINE_string(
    "records",
    None,
    "instead of --images: a folder of TFRecord shards in the layout of ImageNet",
    flag_values=FLAGS,
)
_SPLIT = flags.DEFINE_string("split", "train", "of the shards", flag_values=FLAGS)
_FIRST_LABEL = flags.DEFINE_integer(
    "first_label", 0, "of the shards: 1 for ImageNet", flag_values=FLAGS
)
_EPOCHS = flags.DEFINE_integer("epochs", None, "in all", 1, required=True, flag_values=FLAGS)
_BATCH = flags.DEFINE_integer(
    "batch_size", 64, "images of one step of one worker", 1, flag_values=FLAGS
)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adamw", ["adamw", "sgd"], "", flag_values=FLAGS)
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "the highest", flag_values=FLAGS)
_LABELS_WEIGHT = flags.DEFINE_float(
    "labels_weight", 0.0, "of the labels beside a teacher", flag_values=FLAGS
)
_FEATURES = flags.DEFINE_float(
    "features", 0.0, "weight of the outputs of the replaced layers", flag_values=FLAGS
)
_MIXED = flags.DEFINE_bool("mixed_precision", False, "compute in half precision", flag_values=FLAGS)
_FOLDER = flags.DEFINE_string("folder", None, "for checkpoints; must exist", flag_values=FLAGS)
_RESUME = flags.DEFINE_bool(
    "resume", False, "go on from the checkpoint in --folder", flag_values=FLAGS
)
_TENSORBOARD = flags.DEFINE_string("tensorboard", None, "folder to log to", flag_values=FLAGS)
_STRATEGY = common.define_strategy(FLAGS, ["none", "mirrored", "multiworker"])
_SEED = flags.DEFINE_integer("seed", 0, "of all that is random", flag_values=FLAGS)


def main() -> None:
    """Loads, trains, writes the network and prints its losses."""
    with _STRATEGY():
        model = _MODEL()
        history = tfdwd.finetune(
            model,
            _data(model),
            epochs=_EPOCHS.value,
            teacher=None if _TEACHER.value is None else common.load_model(_TEACHER.value),
            labels=_LABELS_WEIGHT.value,
            features=_FEATURES.value,
            optimizer=_OPTIMIZER.value,
            learning_rate=_RATE.value,
            mixed_precision=_MIXED.value,
            batch_size=_BATCH.value,
            folder=_FOLDER.value,
            resume=_RESUME.value,
            tensorboard=_TENSORBOARD.value,
            seed=_SEED.value,
        )
    if workers.index():
        return  # the first writes
    reporting.save_model(model, _OUTPUT.value)
    rows = [(epoch + 1, f"{loss:.4f}") for epoch, loss in enumerate(history.history["loss"])]
    print(reporting.table(["epoch", "loss"], rows))


def _data(model: Any) -> Any:
    """What `finetune` trains on."""
    images, labels = _IMAGES(), _LABELS()
    if (images is None) == (_RECORDS.value is None):
        raise Error("expected --images or --records, one of them")
    if images is not None:
        return images if labels is None else (images, labels)
    from tfdwd import data  # and TensorFlow

    source = data.tfrecords(_RECORDS.value, _SPLIT.value, first_label=_FIRST_LABEL.value)
    size, seed = model.inputs[0].shape[1], _SEED.value
    return lambda epoch: data.training(
        source, _BATCH.value, size=size, epoch=epoch, seed=seed,
        worker=workers.index(), workers=workers.count(),
    )  # fmt: skip


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
