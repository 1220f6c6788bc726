"""ImageNet, or any data set in one of its layouts: TFRecord shards, TFDS, a folder of classes.

No image is lost without a word. One that does not decode is left out, logged with its name and
counted; more than `max_damaged` of an epoch end it, as does a record whose checksum is wrong.
"""

import dataclasses
import math
import os
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfdwd import reporting
from tfdwd.errors import Error, one_line

_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".gif")
_SHUFFLED = 10_000  # examples among which the next one is drawn
_READ_AT_ONCE = 8  # shards
# Of the crop for training: part of the area, and width over height (Szegedy et al., arXiv
# 1409.4842, section 6).
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_JITTER = 0.4  # of brightness, contrast and saturation, either way
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def _as_they_are(example: Any) -> Any:
    return example


@dataclasses.dataclass(frozen=True)
class Source:
    """Encoded images with labels.

    Attributes:
      count: how many.
      examples: a function of (worker, workers, seed) that gives a worker's part as a dataset, in an
        order that the seed decides; in the order of the files if it is None. Its elements are
        (example, name, number): the name is that of the file, the number that of the record in it
        (-1 if the file is the image), and an example that begins with an empty string says that the
        file cannot be read from there on. Or they are pairs (encoded image, label).
      parsed: makes (encoded image, label) of an example. What fails here costs one image.
    """

    count: int
    examples: Callable[[int, int, int | None], tf.data.Dataset]
    parsed: Callable[[Any], tuple[Any, Any]] = _as_they_are


def tfrecords(folder: str | os.PathLike[str], split: str, *, first_label: int = 0) -> Source:
    """TFRecord shards in the layout of ImageNet.

    Args:
      folder: with shards such as train-00000-of-01024, whose records have ``image/encoded`` and
        ``image/class/label``.
      split: "train", "validation" or what the shards' names begin with.
      first_label: number of the first class in the records: 1 in the usual ImageNet files, where 0
        is the background.

    Returns:
      The source, with labels from 0. The length of each record was checked, without reading the
      images.

    Raises:
      tfdwd.Error: no shard, a missing, truncated or damaged one; the message names it.

    Example:
      >>> tfrecords("../shared/data/cifar10", "validation").count  # doctest: +SKIP
      10000
    """
    paths = _shards(folder, split)
    counts = [_records_in(path) for path in reporting.progress(paths, "checking shards")]
    if not sum(counts):
        raise Error(f"{folder}: expected records in the shards of {split!r}, got none")
    names = [os.fsencode(path) for path in paths]

    def records_of(name: Any, count: Any) -> tf.data.Dataset:
        records = _whole(tf.data.TFRecordDataset(name), count, b"")
        one_name = tf.data.Dataset.from_tensors(name).repeat()
        return tf.data.Dataset.zip((records, one_name, tf.data.Dataset.range(count)))

    def examples(worker: int, workers: int, seed: int | None) -> tf.data.Dataset:
        files = tf.data.Dataset.from_tensor_slices((names, tf.constant(counts, tf.int64)))
        whole = len(names) % workers == 0  # each worker reads its own shards
        if whole:
            files = files.shard(workers, worker)
        if seed is not None:
            files = files.shuffle(len(names), seed=seed)
        records = files.interleave(records_of, cycle_length=_READ_AT_ONCE)
        if not whole:
            records = records.shard(workers, worker)
        return records if seed is None else records.shuffle(_SHUFFLED, seed=seed)

    def parsed(numbered: Any) -> tuple[Any, Any]:
        features = {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        }
        example = tf.io.parse_single_example(numbered[0], features)
        return example["image/encoded"], example["image/class/label"] - first_label

    return Source(sum(counts), examples, parsed)


def _whole(records: tf.data.Dataset, count: Any, lost: Any) -> tf.data.Dataset:
    """So many (record, number); where they end early or cannot be read, ``lost`` is the last.

    TFRecordDataset ends a file at a wrong checksum, and never gets over a missing one: the numbers
    beside bound how often an error is ignored.
    """
    found = tf.data.Dataset.zip((records, tf.data.Dataset.range(count))).ignore_errors()
    end = tf.data.Dataset.from_tensors((lost, tf.constant(-1, tf.int64)))
    return found.concatenate(end).take(count)


def _shards(folder: str | os.PathLike[str], split: str) -> list[Path]:
    """Paths of all shards of a split, in order."""
    if not isinstance(split, str) or not re.fullmatch(r"\w[\w.+-]*", split):
        raise Error(f"split: expected a name such as 'train', got {split!r}")
    names = sorted(entry.name for entry in _entries(folder))
    found = [
        match
        for name in names
        if (match := re.fullmatch(rf"{re.escape(split)}-(\d{{5,}})-of-(\d{{5,}})", name))
    ]
    if not found:
        raise Error(f"{folder}: expected shards such as {split}-00000-of-00008, got none")
    totals = {int(match[2]) for match in found}
    if len(totals) > 1:
        raise Error(f"{folder}: expected one set of shards, got some of {sorted(totals)}")
    [total] = totals
    numbers = [int(match[1]) for match in found]
    missing = sorted(set(range(total)) - set(numbers))
    if missing:
        raise Error(
            f"{folder}: expected {total} shards, but {split}-{missing[0]:05}-of-{total:05} is "
            "missing"
        )
    if sorted(numbers) != list(range(total)):
        raise Error(
            f"{folder}: expected the shards 0..{total - 1} of {total}, each once; got "
            f"{', '.join(match[0] for match in found if int(match[1]) >= total) or numbers}"
        )
    return [Path(folder) / match[0] for match in found]


def _entries(folder: str | os.PathLike[str]) -> list["os.DirEntry[str]"]:
    """What is in a folder, in the order of the names."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise Error(f"{folder}: expected a folder that can be read, got {error}") from error


def _records_in(path: Path) -> int:
    """Counts the records of a shard by their lengths, and finds one that is cut or damaged."""
    place, count = 0, 0
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Error(f"{path}: expected a file, got something else (a folder, pipe or device)")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while place < size:
                file.seek(place)
                header = file.read(12)  # length, and its checksum; after the data another one
                if len(header) == 12 and _checksum(header[:8]) != header[8:]:
                    raise Error(
                        f"{path}: record {count} is damaged, or the file is compressed or holds no "
                        "TFRecords: its length does not fit its checksum; get the file again"
                    )
                length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
                place += 12 + length + 4
                count += 1
    except OSError as error:
        raise Error(f"{path}: expected a file that can be read, got {error}") from error
    if place != size:
        raise Error(
            f"{path}: expected whole records, but record {count - 1} is cut off: get the file again"
        )
    return count


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def _checksum(content: bytes) -> bytes:
    """The masked CRC-32C of TFRecords.

    Source: tensorflow/core/lib/hash/crc32c.h.
    """
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def image_folder(folder: str | os.PathLike[str]) -> Source:
    """A folder of folders of images: one for each class, whose sorted names count from 0.

    Folders and files whose names begin with a dot do not count.

    Args:
      folder: such as imagenet/train.

    Raises:
      tfdwd.Error: no such images; a class without any; something by the name of an image that is no
        file, such as a broken link or a pipe.

    Example:
      >>> image_folder("imagenet/val").count  # doctest: +SKIP
      50000
    """
    folders = [
        entry.path
        for entry in _entries(folder)
        if os.path.isdir(entry.path) and not entry.name.startswith(".")
    ]
    classes = [_images_in(path) for path in folders]
    if not any(classes):
        raise Error(
            f"{folder}: expected a folder for each class with images ({', '.join(_ENDINGS)}), got "
            f"{len(classes)} folders without any"
        )
    for path, images in zip(folders, classes, strict=True):
        if not images:
            raise Error(
                f"{path}: expected images of one class, got none; fill or remove the folder"
            )
    names = [name for images in classes for name in images]
    labels = np.repeat(np.arange(len(classes)), [len(images) for images in classes])

    def examples(worker: int, workers: int, seed: int | None) -> tf.data.Dataset:
        found = tf.data.Dataset.from_tensor_slices(
            ((names, labels.astype(np.int64)), names, np.full(len(names), -1))
        )
        if seed is not None:
            found = found.shuffle(len(names), seed=seed)
        return found.shard(workers, worker)

    def parsed(example: Any) -> tuple[Any, Any]:
        name, label = example
        return tf.io.read_file(name), label

    return Source(len(names), examples, parsed)


def _images_in(folder: str) -> list[bytes]:
    """Paths of the images in a folder."""
    images = [
        entry
        for entry in _entries(folder)
        if entry.name.lower().endswith(_ENDINGS) and not entry.name.startswith(".")
    ]
    for entry in images:
        # To read from a pipe would wait for ever; `DirEntry.is_file` raises at a loop of links.
        if not entry.is_file(follow_symlinks=False) and not os.path.isfile(entry.path):
            raise Error(f"{entry.path}: expected a file, got a folder, pipe, device or broken link")
    return [os.fsencode(entry.path) for entry in images]


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
        raise Error(f"{name}: TensorFlow Datasets does not find it: {one_line(error)}") from error
    if not prepared:
        raise Error(
            f"{name}: expected a prepared data set in {builder.data_dir}; prepare it with "
            f"`tfds build {name}` (ImageNet's archives are downloaded by hand)"
        )
    if split not in builder.info.splits:
        raise Error(f"{name}: expected a split of {sorted(builder.info.splits)}, got {split!r}")
    if not {"image", "label"} <= set(builder.info.features or {}):
        raise Error(f"{name}: expected images with labels, got {builder.info.features}")

    count = builder.info.splits[split].num_examples

    def examples(worker: int, workers: int, seed: int | None) -> tf.data.Dataset:
        reading = tensorflow_datasets.ReadConfig(
            shuffle_seed=seed, interleave_cycle_length=_READ_AT_ONCE, add_tfds_id=True
        )
        found = builder.as_dataset(
            split=split,
            shuffle_files=seed is not None,
            decoders={"image": tensorflow_datasets.decode.SkipDecoding()},
            read_config=reading,
        )
        found = _whole(found.map(pair).shard(workers, worker), len(range(worker, count, workers)),
                       ((b"", tf.constant(0, tf.int64)), f"{name}, {split}"))  # fmt: skip
        found = found.map(named)
        return found if seed is None else found.shuffle(_SHUFFLED, seed=seed)

    def pair(example: Any) -> Any:
        return (example["image"], tf.cast(example["label"], tf.int64)), example["tfds_id"]

    def named(numbered: Any, _: Any) -> Any:
        return *numbered, tf.constant(-1, tf.int64)

    return Source(count, examples)


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
      max_damaged: share of this worker's images that may fail to decode. They are left out, others
        come a second time in their place.

    Returns:
      Batches of (images (batch, size, size, 3) uint8, labels (batch,) int64).

    Raises:
      tfdwd.Error: wrong numbers. While it is gone through, tf.errors.InvalidArgumentError: more
        images were damaged, or a shard is; the message has the numbers and the name. `finetune`
        makes a tfdwd.Error of it.

    Example:
      >>> source = tfrecords("imagenet", "train", first_label=1)  # doctest: +SKIP
      >>> finetune(student, lambda epoch: training(source, 64, epoch=epoch), epochs=10,
      ...          teacher=model)  # doctest: +SKIP
    """
    _check_share(max_damaged)
    if not 0 <= worker < workers:
        raise Error(f"expected a worker of 0..{workers - 1}, got {worker}")
    if not 1 <= batch_size <= source.count // workers:
        raise Error(
            f"batch_size: expected 1..{source.count // workers}, the images of one worker, got "
            f"{batch_size}"
        )
    # A second time around makes up for what was left out.
    examples = source.examples(worker, workers, hash((seed, epoch)) % 2**31).repeat(2)
    total = source.count // workers
    steps = total // batch_size

    def made(number: Any, encoded: Any, label: Any) -> tuple[Any, Any]:
        seeds = [[seed * 1_000_003 + epoch, number * 2 + use] for use in range(2)]
        return _for_training(encoded, size, seeds), label

    def whole(images: Any, labels: Any) -> tuple[Any, Any]:
        images = tf.ensure_shape(images, (batch_size, size, size, 3))
        return images, tf.ensure_shape(labels, (batch_size,))

    judge = _Judge(total, max_damaged, wanted=steps * batch_size)
    batches = _decoded(source, examples, made, batch_size=batch_size, size=size, judge=judge)
    batches = batches.take(steps).map(whole)
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
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

    Raises:
      tfdwd.Error: wrong numbers; as `training` while it is gone through.

    Example:
      >>> data = evaluation(tfrecords("imagenet", "validation", first_label=1))  # doctest: +SKIP
      >>> tfdwd.evaluate("student.tflite", data)  # doctest: +SKIP
    """
    _check_share(max_damaged)
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

    judge = _Judge(source.count, max_damaged, wanted=0)
    examples = source.examples(0, 1, None)
    batches = _decoded(source, examples, made, batch_size=batch_size, size=size, judge=judge)
    if not max_damaged:  # where none may be missing, their number is known
        known = tf.data.experimental.assert_cardinality(-(-source.count // batch_size))
        batches = batches.apply(known)
    return batches.prefetch(tf.data.AUTOTUNE)


def _check_share(max_damaged: float) -> None:
    if not 0 <= max_damaged <= 1:
        raise Error(f"max_damaged: expected a share, 0..1, got {max_damaged}")


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Says which images are left out, and ends an epoch in which too many are.

    Attributes:
      total: images of an epoch.
      max_damaged: share of them that may be left out.
      wanted: how many must come out in any case.
    """

    total: int
    max_damaged: float
    wanted: int

    def __call__(
        self, seen: int, good: int, names: Any, numbers: Any, unreadable: Any, ended: bool
    ) -> np.int64:
        """Looks at a batch with gaps, or the end.

        Args:
          seen: images that were read in this epoch so far.
          good: how many of them decoded.
          names, numbers: file, and record in it or -1, of the last image of each gap.
          unreadable: for each whether its file cannot be read from there on.
          ended: whether there are no more.

        Returns:
          Nothing, as a number: TensorFlow wants one.

        Raises:
          tfdwd.Error: it ends here.
        """
        places = [
            name.decode(errors="replace") + (f", record {number}" if number >= 0 else "")
            for name, number in zip(names, numbers, strict=True)
        ]
        for place, broken in zip(places, unreadable, strict=True):
            if broken:
                raise Error(
                    f"{place}: expected a whole record, got one that its checksum does not fit; "
                    "get the file again"
                )
            logging.warning("%s does not decode; it is left out", place)
        total = max(seen, self.total)
        damaged = (total if ended else seen) - good
        if damaged > self.max_damaged * total:
            raise Error(
                f"expected at most {int(self.max_damaged * total)} of {total} images damaged or "
                f"missing (max_damaged={self.max_damaged}), got {damaged} of the {seen} read so far"
                + "".join(f"; the last is {place}" for place in places[-1:])
            )
        if ended and good < self.wanted:
            raise Error(f"expected {self.wanted} images that decode, got {good}")
        return np.int64(0)


def _decoded(
    source: Source,
    examples: tf.data.Dataset,
    made: Callable[..., Any],
    *,
    batch_size: int,
    size: int,
    judge: _Judge,
) -> tf.data.Dataset:
    """Batches of what decodes.

    What does not leaves a gap in the numbers; its name is known from the example behind it, and
    behind the last there is one more, of no name.
    """
    if len(examples.element_spec) == 2:
        no_number = tf.constant(-1, tf.int64)
        examples = examples.map(lambda *pair: (pair, "an image without a name", no_number))
    blank = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), examples.element_spec
    )
    examples = examples.concatenate(tf.data.Dataset.from_tensors(blank))

    def with_former(former: Any, element: Any) -> Any:
        number, (example, name, place) = element
        unreadable = tf.equal(tf.strings.length(tf.nest.flatten(example)[0]), 0)
        return (name, place, unreadable), (number, former, example, tf.equal(name, b""))

    def decoded(number: Any, former: Any, example: Any, last: Any) -> Any:
        def nothing() -> Any:
            return tf.zeros((size, size, 3), tf.uint8), tf.constant(0, tf.int64)

        def from_example() -> Any:
            image, label = made(number, *source.parsed(example))
            return image, tf.cast(label, tf.int64)

        image, label = tf.cond(last, nothing, from_example)
        return number, former, last, tf.ensure_shape(image, (size, size, 3)), label

    def checked(state: Any, found: Any) -> Any:
        before, good = state
        numbers, (names, places, unreadable), last, images, labels = found
        count = tf.size(numbers) - tf.cast(last[-1], tf.int32)
        good += tf.cast(count, tf.int64)
        gaps = (numbers - tf.concat([before[None], numbers[:-1]], 0) > 1) | unreadable
        seen = numbers[-1] + tf.cast(~last[-1], tf.int64)
        facts = [
            seen, good, tf.boolean_mask(names, gaps), tf.boolean_mask(places, gaps),
            tf.boolean_mask(unreadable, gaps), last[-1],
        ]  # fmt: skip
        fine = tf.constant(0, tf.int64)
        odd = tf.reduce_any(gaps) | last[-1]
        judged = tf.cond(odd, lambda: tf.numpy_function(judge, facts, tf.int64), lambda: fine)
        with tf.control_dependencies([judged]):
            images = tf.identity(images)
        return (numbers[-1], good), (images[:count], labels[:count])

    nothing = tf.constant(b""), tf.constant(-1, tf.int64), tf.constant(False)
    numbered = examples.enumerate().scan(nothing, with_former)
    images = numbered.map(decoded, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    # Batch by batch: one more call for each image would take part of the time of the decoding.
    start = tf.constant(-1, tf.int64), tf.constant(0, tf.int64)
    batches = images.batch(batch_size).scan(start, checked)
    return batches.filter(lambda _, labels: tf.size(labels) > 0)


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
