"""Fine-tunes a network of any outputs, from labels, a teacher, or both; can go on where it stopped.

Example:
  mkdir run
  tfdwd-train --model=student.keras --teacher=resnet8.keras --images=train.npz \\
      --images_key=x_train --folder=run --output=tuned.keras
  tfdwd-train --model=detector.keras --images=train.npz --images_key=x --teacher=original.keras \\
      --loss_weight=boxes=2 --epochs=10 --output=tuned.keras
  tfdwd-train --model=detector.keras --images=train.npz --images_key=x --labels=boxes=boxes.npy \\
      --labels=classes=classes.npy --loss=boxes=huber --epochs=10 --output=trained.keras
  tfdwd-train --model=student.keras --teacher=original.keras --records=imagenet --first_label=1 \\
      --epochs=10 --folder=run --resume --output=tuned.keras
  TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
              "task": {"type": "worker", "index": 0}}' \\
      tfdwd-train --strategy=multiworker ...    (and the same with index 1 on 10.0.0.2)
"""

from pathlib import Path
from typing import Any

from absl import flags, logging

import tfdwd
from tfdwd import files, reporting, workers
from tfdwd.errors import Error
from tfdwd.scripts import common

FLAGS = flags.FlagValues()
_MODEL = common.define_model(FLAGS)
_OUTPUT = common.define_output(
    FLAGS, "output", "the .keras file to write", suffix=".keras", required=True
)
_TEACHER = common.define_model_file(
    FLAGS, "teacher", "the Keras model to learn from, such as the original"
)
_IMAGES = common.define_array(FLAGS, "images", "images to train on")
_LABELS = common.define_labels(FLAGS, "labels", "their labels; not needed with a teacher")
_RECORDS = common.define_folder(
    FLAGS, "records", "instead of --images: a folder of TFRecord shards in the layout of ImageNet"
)
_TFDS = flags.DEFINE_string(
    "tfds", None, "or a data set that TensorFlow Datasets prepared: imagenet2012", flag_values=FLAGS
)
_IMAGE_FOLDER = common.define_folder(
    FLAGS, "image_folder", "or a folder of splits, each a folder for each class"
)
_SPLIT = flags.DEFINE_string("split", "train", "of these", flag_values=FLAGS)
_VALIDATION_SPLIT = flags.DEFINE_string(
    "validation_split", None, "of these: tested after each epoch, for best.keras", flag_values=FLAGS
)
_VALIDATION = common.define_array(FLAGS, "validation", "beside --images: the same of an array")
_VALIDATION_LABELS = common.define_labels(
    FLAGS, "validation_labels", "the labels of --validation; not needed with a teacher"
)
_SIZE = flags.DEFINE_integer(
    "size",
    None,
    "pixels on a side of images from files, for a model of an open size",
    1,
    flag_values=FLAGS,
)
_FIRST_LABEL = flags.DEFINE_integer(
    "first_label", 0, "of the shards: 1 for ImageNet", flag_values=FLAGS
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "in all; by default by the number of images", 1, flag_values=FLAGS
)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "instead of --epochs: about how long it may take", flag_values=FLAGS
)
_AUGMENT = flags.DEFINE_enum(
    "augment",
    "auto",
    ["auto", "none"],
    "how --images are changed: with a teacher, mirrored, shifted and mixed where it stands that",
    flag_values=FLAGS,
)
_HELD_BACK = flags.DEFINE_float(
    "held_back",
    0.1,
    "part of --images that is measured, not trained on, if --validation is not given; the best "
    "weights there are written. 0: the last ones",
    flag_values=FLAGS,
)
_BATCH = flags.DEFINE_integer(
    "batch_size", 64, "images of one step of one worker", 1, flag_values=FLAGS
)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adamw", ["adamw", "sgd"], "", flag_values=FLAGS)
_RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "the highest. By default by how far the student is from its teacher; 5e-4 without one",
    flag_values=FLAGS,
)
_LOSS = flags.DEFINE_multi_string(
    "loss",
    [],
    "a Keras loss against the labels, such as mean_squared_error; of one of several outputs "
    "OUTPUT=LOSS; may be repeated. By default the cross-entropy of probabilities",
    flag_values=FLAGS,
)
_OUTPUTS = common.define_outputs(FLAGS)
_LOSS_WEIGHTS = flags.DEFINE_multi_string(
    "loss_weight", [], "OUTPUT=WEIGHT; may be repeated", flag_values=FLAGS
)
_LABELS_WEIGHT = flags.DEFINE_float(
    "labels_weight", 0.0, "of the labels beside a teacher", flag_values=FLAGS
)
_FEATURES = flags.DEFINE_list(
    "features",
    ["auto"],
    "what is learnt from the teacher beside its outputs: auto, the last maps of classifiers; none; "
    "replaced, the convolutions that were replaced; or layers, model/layer for those of nested "
    "models (a number is the old way to give --features_weight)",
    flag_values=FLAGS,
)
_FEATURES_WEIGHT = flags.DEFINE_float(
    "features_weight",
    None,
    "of these; by default 16 for the last maps, else 1",
    flag_values=FLAGS,
)
_WARMUP = flags.DEFINE_float(
    "warmup", 0.05, "part of all steps in which the learning rate rises", flag_values=FLAGS
)
_DECAY = flags.DEFINE_float("weight_decay", 1e-4, "of kernels only", flag_values=FLAGS)
_SMOOTHING = flags.DEFINE_float("label_smoothing", 0.0, "0..1", flag_values=FLAGS)
_EMA = flags.DEFINE_float(
    "ema", None, "momentum of an average of the weights, such as 0.999", flag_values=FLAGS
)
_FROZEN = flags.DEFINE_bool(
    "freeze_batch_norm", False, "batch norms stay as they are", flag_values=FLAGS
)
_MIXED = flags.DEFINE_bool("mixed_precision", False, "compute in half precision", flag_values=FLAGS)
_FOLDER = common.define_folder(FLAGS, "folder", "for checkpoints; must exist")
_RESUME = flags.DEFINE_bool(
    "resume", False, "go on from the checkpoint in --folder", flag_values=FLAGS
)
_TENSORBOARD = flags.DEFINE_string("tensorboard", None, "folder to log to", flag_values=FLAGS)
_STRATEGY = common.define_strategy(FLAGS, ["none", "mirrored", "multiworker"])
_SEED = flags.DEFINE_integer("seed", 0, "of all that is random", flag_values=FLAGS)


def main() -> None:
    """Loads, trains, writes the network and prints its losses."""
    features, weight = _features()
    with _STRATEGY():
        model = _MODEL()
        history = tfdwd.finetune(
            model,
            _data(model),
            epochs=_EPOCHS.value,
            minutes=_MINUTES.value,
            teacher=None if _TEACHER.value is None else common.load_model(_TEACHER.value),
            loss=common.by_output("loss", _LOSS.value),
            outputs=_OUTPUTS(),
            loss_weights=_loss_weights(),
            labels_weight=_LABELS_WEIGHT.value,
            features=features,
            features_weight=_FEATURES_WEIGHT.value if weight is None else weight,
            augment=None if _AUGMENT.value == "none" else "auto",
            optimizer=_OPTIMIZER.value,
            learning_rate=_RATE.value,
            warmup=_WARMUP.value,
            weight_decay=_DECAY.value,
            label_smoothing=_SMOOTHING.value,
            ema=_EMA.value,
            mixed_precision=_MIXED.value,
            freeze_batch_norm=_FROZEN.value,
            batch_size=_BATCH.value,
            validation=_validation(model),
            folder=_FOLDER.value,
            resume=_RESUME.value,
            tensorboard=_TENSORBOARD.value,
            seed=_SEED.value,
        )
    if workers.index():
        return  # the first writes
    files.save_model(model, _OUTPUT.value)
    columns = history.history
    rows = zip(*(map("{:.4f}".format, values) for values in columns.values()), strict=True)
    print(
        reporting.table(["epoch", *columns], [(number, *row) for number, row in enumerate(rows, 1)])
    )


def _features() -> tuple[list[str] | str | None, float | None]:
    """As `tfdwd.finetune` takes them, and the weight where that is what --features holds."""
    given = _FEATURES.value
    if len(given) != 1:
        return given, None
    if given[0] in ("auto", "replaced", "none"):
        return None if given[0] == "none" else given[0], None
    try:
        weight = float(given[0])
    except ValueError:
        return given, None
    logging.warning(
        "--features=%s, a number, is called --features_weight now; the old name will be removed "
        "in 0.3.0",
        given[0],
    )
    return "replaced", weight


def _loss_weights() -> dict[str, float] | None:
    given = common.by_output("loss_weight", _LOSS_WEIGHTS.value)
    try:
        return None if given is None else {name: float(text) for name, text in given.items()}
    except (AttributeError, ValueError) as error:
        raise Error(f"--loss_weight: expected OUTPUT=NUMBER, got {_LOSS_WEIGHTS.value}") from error


def _data(model: Any) -> Any:
    """What `finetune` trains on."""
    images, labels = _IMAGES(), _LABELS()
    given = [_RECORDS.value, _TFDS.value, _IMAGE_FOLDER.value, images]
    if sum(way is not None for way in given) != 1:
        raise Error("expected --images, --records, --tfds or --image_folder, one of them")
    if images is not None:
        return images if labels is None else (images, labels)
    from tfdwd import data  # and TensorFlow

    source = _source(_SPLIT.value)
    size, seed = _size(model), _SEED.value
    return lambda epoch: data.training(
        source,
        _BATCH.value,
        size=size,
        epoch=epoch,
        seed=seed,
        worker=workers.index(),
        workers=workers.count(),
    )


def _validation(model: Any) -> Any:
    """What is measured after each epoch."""
    images, labels = _VALIDATION(), _VALIDATION_LABELS()
    if images is None and labels is not None:
        raise Error("--validation_labels: expected --validation beside it")
    if images is not None:
        return images if labels is None else (images, labels)
    if _VALIDATION_SPLIT.value is None:
        return _HELD_BACK.value
    from tfdwd import data

    size = _size(model)
    source = _source(_VALIDATION_SPLIT.value)
    return data.evaluation(source, size=size, resize=round(size * 256 / 224))


def _size(model: Any) -> int:
    """Pixels on a side of the images that are made from files."""
    own = model.inputs[0].shape[1]
    if own is None and _SIZE.value is None:
        raise Error("--size: expected pixels, since the model takes images of any size")
    if None not in (own, _SIZE.value) and own != _SIZE.value:
        raise Error(f"--size: the model takes images of {own} pixels, got {_SIZE.value}")
    return own or _SIZE.value


def _source(split: str) -> Any:
    from tfdwd import data

    if _RECORDS.value is not None:
        return data.tfrecords(_RECORDS.value, split, first_label=_FIRST_LABEL.value)
    if _TFDS.value is not None:
        return data.tfds(_TFDS.value, split)
    if _IMAGE_FOLDER.value is not None:
        return data.image_folder(Path(_IMAGE_FOLDER.value) / split)
    raise Error("--validation_split: expected --records, --tfds or --image_folder beside it")


def run() -> None:
    """The console command."""
    common.run(main, FLAGS, __doc__)


if __name__ == "__main__":
    run()
