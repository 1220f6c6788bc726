"""ImageNet, or any data set in one of its layouts: TFRecord shards, TFDS, a folder of classes."""

import dataclasses
import math
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfdwd import reporting
from tfdwd.errors import Error

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".gif")
_SHUFFLED = 10_000  # examples among which the next one is drawn
_READ_AT_ONCE = 8  # shards
# Of the crop for training: part of the area, and width over height (Szegedy et al., arXiv
# 1409.4842, section 6).
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_JITTER = 0.4  # of brightness, contrast and saturation, either way
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_ENOUGH = 100  # examples before their damaged share means something


@dataclasses.dataclass(frozen=True)
class Source:
    """Encoded images with labels.

    Attributes:
      count: how many.
      examples: a function of (worker, workers, seed) that gives a worker's part as a dataset of
        (encoded image, label), in an order that the seed decides; in the order of the files if it
        is None.
    """

    count: int
    examples: Callable[[int, int, int | None], tf.data.Dataset]


def tfrecords(folder: str | os.PathLike[str], split: str, *, first_label: int = 0) -> Source:
    """TFRecord shards in the layout of ImageNet.

    Args:
      folder: with shards such as train-00000-of-01024, whose records have ``image/encoded`` and
        ``image/class/label``.
      split: "train", "validation" or what the shards' names begin with.
      first_label: number of the first class in the records: 1 in the usual ImageNet files, where 0
        is the background.

    Returns:
      The source, with labels from 0. Every shard was gone through once, without reading the images.

    Raises:
      tfdwd.Error: no shard, a missing or a truncated one; the message names it.

    Example:
      >>> tfrecords("../shared/data/cifar10", "validation").count  # doctest: +SKIP
      10000
    """
    paths = sorted(Path(folder).glob(f"{split}-*-of-*"))
    found = [match for path in paths if (match := _SHARD.search(path.name))]
    if not found:
        raise Error(f"{folder}: expected shards such as {split}-00000-of-00008, got none")
    totals = {int(match[2]) for match in found}
    missing = sorted(set(range(max(totals))) - {int(match[1]) for match in found})
    if len(totals) > 1 or missing:
        raise Error(
            f"{folder}: expected {max(totals)} shards, but {split}-{missing[0]:05}-of-"
            f"{max(totals):05} is missing"
            if missing
            else f"{folder}: expected one set of shards, got some of {sorted(totals)}"
        )
    count = sum(map(_records_in, reporting.progress(paths, "checking shards")))
    names = [os.fspath(path) for path in paths]

    def examples(worker: int, workers: int, seed: int | None) -> tf.data.Dataset:
        files = tf.data.Dataset.from_tensor_slices(names)
        whole = len(names) % workers == 0  # each worker reads its own shards
        if whole:
            files = files.shard(workers, worker)
        if seed is not None:
            files = files.shuffle(len(names), seed=seed)
        records = files.interleave(tf.data.TFRecordDataset, cycle_length=_READ_AT_ONCE)
        if not whole:
            records = records.shard(workers, worker)
        if seed is not None:
            records = records.shuffle(_SHUFFLED, seed=seed)
        return records.map(parsed)

    def parsed(record: Any) -> tuple[Any, Any]:
        features = {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        }
        example = tf.io.parse_single_example(record, features)
        return example["image/encoded"], example["image/class/label"] - first_label

    return Source(count, examples)


def _records_in(path: Path) -> int:
    """Counts the records of a shard by their lengths, and finds a cut one."""
    size, place, count = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while place < size:
            file.seek(place)
            header = file.read(12)  # length, and its checksum; after the data another one
            place += 12 + (struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size) + 4
            count += 1
    if place != size:
        raise Error(f"{path}: expected whole records, but record {count} is cut: get the file anew")
    return count


def image_folder(folder: str | os.PathLike[str]) -> Source:
    """A folder of folders of images: one for each class, whose sorted names count from 0.

    Args:
      folder: such as imagenet/train.

    Raises:
      tfdwd.Error: no such images.

    Example:
      >>> image_folder("imagenet/val").count  # doctest: +SKIP
      50000
    """
    classes = sorted(path for path in Path(folder).glob("*") if path.is_dir())
    files = [
        (os.fspath(path), label)
        for label, inside in enumerate(classes)
        for path in sorted(inside.iterdir())
        if path.suffix.lower() in _ENDINGS
    ]
    if not files:
        raise Error(
            f"{folder}: expected a folder for each class with images ({', '.join(_ENDINGS)}), got "
            f"{len(classes)} folders without any"
        )
    names, labels = zip(*files, strict=True)

    def examples(worker: int, workers: int, seed: int | None) -> tf.data.Dataset:
        pairs = tf.data.Dataset.from_tensor_slices((list(names), tf.constant(labels, tf.int64)))
        if seed is not None:
            pairs = pairs.shuffle(len(names), seed=seed)
        pairs = pairs.shard(workers, worker)
        return pairs.map(lambda name, label: (tf.io.read_file(name), label))

    return Source(len(names), examples)


def tfds(name: str = "imagenet2012", split: str = "train", *, folder: Any = None) -> Source:
    """A data set of images with labels that TensorFlow Datasets has prepared; downloads nothing.

    Args:
      name: as TensorFlow Datasets knows it, with or without a version.
      split: "train", "validation" or the like.
      folder: where its data sets are; ~/tensorflow_datasets or TFDS_DATA_DIR if None.

    Returns:
      The source, with labels from 0.

    Raises:
      tfdwd.Error: tensorflow-datasets is not installed, the data set is not prepared, or has no
        such split, or no image with a label.

    Example:
      >>> tfds("imagenet2012", "validation").count  # doctest: +SKIP
      50000
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise Error("tfds: expected tensorflow-datasets; pip install 'tfdwd[train]'") from error
    try:
        builder = tensorflow_datasets.builder(name, data_dir=folder, try_gcs=False)
        prepared = builder.is_prepared()
    except Exception as error:  # whatever a data set's own code raises
        raise Error(f"{name}: TensorFlow Datasets does not find it: {error}") from error
    if not prepared:
        raise Error(
            f"{name}: expected a prepared data set in {builder.data_dir}; prepare it with "
            f"`tfds build {name}` (ImageNet's archives are downloaded by hand)"
        )
    if split not in builder.info.splits:
        raise Error(f"{name}: expected a split of {sorted(builder.info.splits)}, got {split!r}")
    if not {"image", "label"} <= set(builder.info.features or {}):
        raise Error(f"{name}: expected images with labels, got {builder.info.features}")

    def examples(worker: int, workers: int, seed: int | None) -> tf.data.Dataset:
        reading = tensorflow_datasets.ReadConfig(
            shuffle_seed=seed, interleave_cycle_length=_READ_AT_ONCE
        )
        found = builder.as_dataset(
            split=split,
            shuffle_files=seed is not None,
            decoders={"image": tensorflow_datasets.decode.SkipDecoding()},
            read_config=reading,
        )
        found = found.shard(workers, worker)
        if seed is not None:
            found = found.shuffle(_SHUFFLED, seed=seed)
        return found.map(lambda example: (example["image"], tf.cast(example["label"], tf.int64)))

    return Source(builder.info.splits[split].num_examples, examples)


def training(
    source: Source,
    batch_size: int,
    *,
    size: int = 224,
    epoch: int = 0,
    seed: int = 0,
    worker: int = 0,
    workers: int = 1,
    max_damaged: float = 0.001,
) -> tf.data.Dataset:
    """One epoch of images for training: cropped at random, flipped, of jittered colours.

    Only the crop of a JPEG is decoded. All that is random follows from seed and epoch, so that an
    epoch can be had again; `tfdwd.finetune` takes a function of the epoch.

    Args:
      source: of the images.
      batch_size: images of one worker; what is left over is dropped.
      size: pixels on a side.
      epoch, seed: of the order and of the distortions.
      worker, workers: which part of the source this is.
      max_damaged: share of the images that may fail to decode. They are left out.

    Returns:
      Batches of (images (batch, size, size, 3) uint8, labels (batch,) int64).

    Raises:
      tfdwd.Error: wrong numbers. While it is gone through, tf.errors.InvalidArgumentError: more
        images were damaged; the message has the numbers.

    Example:
      >>> source = tfrecords("imagenet", "train", first_label=1)  # doctest: +SKIP
      >>> finetune(student, lambda epoch: training(source, 64, epoch=epoch), epochs=10,
      ...          teacher=model)  # doctest: +SKIP
    """
    if not 0 <= worker < workers:
        raise Error(f"expected a worker of 0..{workers - 1}, got {worker}")
    if not 1 <= batch_size <= source.count // workers:
        raise Error(
            f"batch_size: expected 1..{source.count // workers}, the images of one worker, got "
            f"{batch_size}"
        )
    examples = source.examples(worker, workers, hash((seed, epoch)) % 2**31)

    def made(number: Any, encoded: Any, label: Any) -> tuple[Any, Any]:
        seeds = [[seed * 1_000_003 + epoch, number * 2 + use] for use in range(2)]
        return _for_training(encoded, size, seeds), label

    # A second time around makes up for what was left out.
    batches = _decoded(examples.repeat(2), made, batch_size, max_damaged, drop_remainder=True)
    steps = source.count // workers // batch_size
    batches = batches.take(steps).apply(tf.data.experimental.assert_cardinality(steps))
    return batches.prefetch(tf.data.AUTOTUNE)


def evaluation(
    source: Source,
    batch_size: int = 64,
    *,
    size: int = 224,
    resize: int = 256,
    max_damaged: float = 0.0,
) -> tf.data.Dataset:
    """All images as they are for testing and calibration: shorter side resized, centre cropped.

    Args:
      source: of the images.
      batch_size: the last one may be smaller.
      size: pixels on a side.
      resize: of the shorter side before the crop.
      max_damaged: share of the images that may fail to decode. They are left out.

    Returns:
      Batches of (images (batch, size, size, 3) uint8, labels (batch,) int64), in the order of the
      files; `tfdwd.evaluate`, `export`, `decompose` and `plan` take them.

    Example:
      >>> data = evaluation(tfrecords("imagenet", "validation", first_label=1))  # doctest: +SKIP
      >>> tfdwd.evaluate("student.tflite", data)  # doctest: +SKIP
    """
    if batch_size < 1:
        raise Error(f"batch_size: expected at least 1, got {batch_size}")
    if not 0 < size <= resize:
        raise Error(f"expected 0 < size <= resize, got {size} and {resize}")

    def made(number: Any, encoded: Any, label: Any) -> tuple[Any, Any]:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        scaled = tf.cast(tf.round(shape * resize / tf.reduce_min(shape)), tf.int32)
        image = tf.image.resize(image, scaled, antialias=True)
        top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        return _as_bytes(image[top : top + size, left : left + size]), label

    count = None if max_damaged else source.count  # where none may be missing, at the end either
    examples = source.examples(0, 1, None)
    batches = _decoded(examples, made, batch_size, max_damaged, count=count)
    return batches.prefetch(tf.data.AUTOTUNE)


def _decoded(
    examples: tf.data.Dataset,
    made: Callable[..., Any],
    batch_size: int,
    max_damaged: float,
    *,
    drop_remainder: bool = False,
    count: int | None = None,
) -> tf.data.Dataset:
    """Batches of what decodes; stops where that is too little, or not ``count``."""

    def numbered(number: Any, example: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        return number, *made(number, *example)

    def checked(batch: Any, found: tuple[Any, Any, Any]) -> Any:
        numbers, images, labels = found  # those between that are not there were damaged
        seen = numbers[-1] + 1
        damaged = seen - batch * batch_size - tf.size(numbers, tf.int64)
        limit = max_damaged * tf.cast(tf.maximum(seen, _ENOUGH), tf.float64)
        fine = tf.debugging.Assert(
            tf.cast(damaged, tf.float64) <= limit,
            [f"expected at most {max_damaged} of the images damaged; do not decode:", damaged,
             "of", seen],
        )  # fmt: skip
        with tf.control_dependencies([fine]):
            return tf.identity(images), labels

    images = examples.enumerate().map(numbered, num_parallel_calls=tf.data.AUTOTUNE)
    images = images.ignore_errors()
    if count is not None:
        images = images.apply(tf.data.experimental.assert_cardinality(count))
    batches = images.batch(batch_size, drop_remainder)
    # Batch by batch: one more call for each image would take a tenth of the decoding.
    return batches.enumerate().map(checked)


def _for_training(encoded: Any, size: int, seeds: Any) -> Any:
    def crop(shape: Any) -> Any:
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            seeds[0],
            min_object_covered=0.1,
            aspect_ratio_range=_ASPECT,
            area_range=_AREA,
        )
        return tf.concat([begin[:2], extent[:2]], 0)

    def jpeg() -> Any:
        window = crop(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3)

    def other() -> Any:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        top, left, height, width = tf.unstack(crop(tf.shape(image)))
        return image[top : top + height, left : left + width]

    image = tf.image.resize(tf.cond(tf.io.is_jpeg(encoded), jpeg, other), (size, size))
    # Brightness, contrast about the mean grey, and saturation are one matrix and one offset: each
    # further pass over the pixels would cost a tenth of the decoding.
    drawn = tf.random.stateless_uniform((4,), seeds[1], -1.0)
    brightness, contrast, saturation = tf.unstack(1 + _JITTER * drawn[:3])
    grey = tf.constant(_GREY)
    mean = tf.tensordot(tf.reduce_mean(tf.reduce_mean(image, 0), 0), grey, 1)
    colours = saturation * tf.eye(3) + (1 - saturation) * grey[:, None]
    # Several pixels in a row of the product: with three columns it takes half as long again.
    count = math.gcd(size * size, 8)
    kron = tf.eye(count)[:, None, :, None] * (brightness * contrast * colours)[None, :, None, :]
    mixed = tf.matmul(tf.reshape(image, (-1, 3 * count)), tf.reshape(kron, (3 * count, 3 * count)))
    mixed += brightness * (1 - contrast) * mean + 0.5
    image = tf.reshape(tf.saturate_cast(mixed, tf.uint8), (size, size, 3))
    return tf.cond(drawn[3] < 0, lambda: tf.reverse(image, (1,)), lambda: image)


def _as_bytes(image: Any) -> Any:
    return tf.cast(tf.clip_by_value(image + 0.5, 0, 255), tf.uint8)
