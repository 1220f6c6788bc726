"""Input pipelines on generated images in ImageNet's layouts, and on CIFAR-10 where it is there."""

import os
import socket
import struct
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

import tfdwd
from tfdwd import data
from tfdwd.batches import batches
from tfdwd.errors import Error

SHAPES = [(40, 60), (70, 50), (48, 48), (33, 90)]


def _image(number: int) -> np.ndarray:
    """A ramp, smooth so that JPEG changes little, of a hue that tells the number."""
    height, width = SHAPES[number % len(SHAPES)]
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 3, columns * 2, np.full_like(rows, 10 * number)], -1)
    return np.clip(ramp, 0, 255).astype(np.uint8)


def _record(encoded: bytes, label: int) -> bytes:
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _shards(folder: Path, images: int = 24, shards: int = 4, damaged: tuple[int, ...] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        path = folder / f"train-{shard:05}-of-{shards:05}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number in range(shard, images, shards):
                encoded = tf.io.encode_jpeg(_image(number), quality=95).numpy()
                writer.write(_record(b"no" if number in damaged else encoded, number + 1))
    return folder


def _all(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> data.Source:
    return data.tfrecords(_shards(tmp_path_factory.mktemp("r") / "x"), "train", first_label=1)


def test_evaluation_resizes_and_crops_the_centre(source: data.Source) -> None:
    images, labels = _all(data.evaluation(source, 10, size=24, resize=32))
    assert source.count == 24 and images.shape == (24, 24, 24, 3) and images.dtype == np.uint8
    assert sorted(labels) == list(range(24))
    for image, label in zip(images, labels, strict=True):
        # The ramps of the whole image, between the crop's first and last pixel centres.
        height, width = SHAPES[label % len(SHAPES)]
        scale = min(height, width) / 32
        centre = image[12, 12].astype(int)
        expected = [3 * (height + scale - 1) / 2, width + scale - 1, 10 * label]
        np.testing.assert_allclose(centre, np.clip(expected, 0, 255), atol=6)


def test_training_is_seeded_and_anew_in_each_epoch(source: data.Source) -> None:
    def made(**options: Any) -> tuple[np.ndarray, np.ndarray]:
        return _all(data.training(source, 8, size=16, **options))

    images, labels = made()
    assert images.shape == (24, 16, 16, 3) and images.dtype == np.uint8
    assert sorted(labels) == list(range(24))
    for again, label in zip(made(), (images, labels), strict=True):
        np.testing.assert_array_equal(again, label)
    for options in ({"epoch": 1}, {"seed": 1}):
        other, other_labels = made(**options)
        assert not np.array_equal(labels, other_labels)
        order = [np.argsort(labels), np.argsort(other_labels)]
        assert np.abs(images[order[0]].astype(int) - other[order[1]].astype(int)).mean() > 5


def test_some_are_flipped_and_all_are_different_crops(source: data.Source) -> None:
    images, _ = _all(data.training(source, 24, size=16))
    rising = images[:, 8, -1, 1].astype(int) - images[:, 8, 0, 1]  # the columns' ramp
    assert (rising > 0).any() and (rising < 0).any()
    assert len({image.tobytes() for image in images}) == 24


@pytest.mark.parametrize("workers", [2, 3])  # 4 shards: a part of the shards, of the records
def test_workers_share_the_images(source: data.Source, workers: int) -> None:
    parts = [
        _all(data.training(source, 4, size=8, worker=worker, workers=workers))[1]
        for worker in range(workers)
    ]
    assert sorted(np.concatenate(parts)) == list(range(24))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name, numbers in {"cat": (0, 1), "ant": (2, 3, 4)}.items():
        (tmp_path / name).mkdir()
        for number in numbers:
            png = number == 3
            encoded = (tf.io.encode_png if png else tf.io.encode_jpeg)(_image(number)).numpy()
            (tmp_path / name / f"{number}.{'png' if png else 'JPEG'}").write_bytes(encoded)
        (tmp_path / name / "notes.txt").touch()
    source = data.image_folder(tmp_path)
    assert source.count == 5
    assert _all(data.evaluation(source, size=8, resize=8))[1].tolist() == [0, 0, 0, 1, 1]
    assert sorted(_all(data.training(source, 5, size=8))[1]) == [0, 0, 0, 1, 1]
    with pytest.raises(Error, match="expected a folder for each class with images"):
        data.image_folder(tmp_path / "cat")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set that TensorFlow Datasets itself wrote."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=24),
        }
    )
    images = [(number, {"image": _image(number), "label": number}) for number in range(24)]
    tfds.dataset_builders.store_as_tfds_dataset(
        "ramps", "1.0.0", features, split_datasets={"validation": images}, data_dir=folder
    )
    return folder


def test_tensorflow_datasets(prepared: Path) -> None:
    source = data.tfds("ramps", "validation", folder=prepared)
    assert source.count == 24
    images, labels = _all(data.evaluation(source, size=24, resize=32))
    assert sorted(labels) == list(range(24)) and images.shape[1:] == (24, 24, 3)
    parts = [
        _all(data.training(source, 4, size=8, worker=worker, workers=2))[1] for worker in (0, 1)
    ]
    assert sorted(np.concatenate(parts)) == list(range(24))
    [shard] = (prepared / "ramps").glob("*/*.tfrecord-*")
    content = shard.read_bytes()
    _flip(shard, 20, 40)
    for kind in ("training", "evaluation"):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="ramps, validation: expected a wh"
        ):
            _all(_made(source, kind, 1.0))
    shard.write_bytes(content)
    with pytest.raises(Error, match=r"expected a split of \['validation'\], got 'train'"):
        data.tfds("ramps", "train", folder=prepared)
    with pytest.raises(Error, match=r"imagenet2012: expected a prepared data set in .*tfds build"):
        data.tfds("imagenet2012", folder=prepared)
    with pytest.raises(Error, match="no_such: TensorFlow Datasets does not find it"):
        data.tfds("no_such", folder=prepared)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as a warning."""
    found: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
    return found


def _made(source: data.Source, kind: str, max_damaged: float, batch_size: int = 8) -> Any:
    if kind == "training":
        return data.training(source, batch_size, size=8, max_damaged=max_damaged)
    return data.evaluation(source, batch_size, size=8, resize=8, max_damaged=max_damaged)


@pytest.mark.parametrize("damaged", [(5,), (0,), (23,), (0, 1, 2), (22, 23), (3, 11, 19, 23)])
def test_few_damaged_images_are_left_out_and_named(
    tmp_path: Path, damaged: tuple[int, ...], said: list[str]
) -> None:
    source = data.tfrecords(_shards(tmp_path / "x", damaged=damaged), "train", first_label=1)
    left = [number for number in range(24) if number not in damaged]
    images, labels = _all(_made(source, "training", 0.2))
    assert len(images) == 24 and set(labels) <= set(left)  # some came twice in their place
    said.clear()
    for batch_size in (1, 7, 8, 24, 100):
        assert sorted(_all(_made(source, "evaluation", 0.2, batch_size))[1]) == left
    # Four shards in turns: number 5 is record 1 of shard 1.
    last = f"train-{damaged[-1] % 4:05}-of-00004, record {damaged[-1] // 4} does not decode"
    assert all(any(last in text for text in said[at:]) for at in (0, len(said) * 4 // 5))


@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize("damaged", [(5, 6, 7), (23,), tuple(range(24))])
def test_too_many_damaged_images_end_it(
    tmp_path: Path, damaged: tuple[int, ...], kind: str, said: list[str]
) -> None:
    source = data.tfrecords(_shards(tmp_path / "x", damaged=damaged), "train", first_label=1)
    allowed = (len(damaged) - 0.5) / 24
    message = r"at most \d+ of \d+ images .*the last is \S*/train-0000\d-of-00004, record \d"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _all(_made(source, kind, allowed))
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    with pytest.raises(Error, match=f"read: expected {message}$"):  # one line, its own words
        list(batches(_made(source, kind, allowed), model))


def test_nothing_but_damaged_images_is_an_error_though_all_may_be(tmp_path: Path) -> None:
    source = data.tfrecords(_shards(tmp_path / "x", damaged=tuple(range(24))), "train")
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="expected 24 images that decode, got 0"
    ):
        _all(_made(source, "training", 1.0))
    assert not list(_made(source, "evaluation", 1.0))


def _flip(path: Path, record: int, place: int) -> None:
    """Changes one bit of a record of a shard, ``place`` bytes behind its beginning."""
    content, start = bytearray(path.read_bytes()), 0
    for _ in range(record):
        start += 16 + struct.unpack("<Q", content[start : start + 8])[0]
    content[start + place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize("record", [0, 3, 5])  # first, in between, last of six
def test_a_record_with_a_wrong_checksum_ends_it_and_is_named(
    tmp_path: Path, kind: str, record: int
) -> None:
    """Whatever the share: TensorFlow would leave out the rest of the shard, too."""
    folder = _shards(tmp_path / "x")
    _flip(folder / "train-00002-of-00004", record, 40)
    source = data.tfrecords(folder, "train", first_label=1)
    message = f"train-00002-of-00004, record {record}: expected a whole record"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _all(_made(source, kind, 1.0, batch_size=4))


@pytest.mark.parametrize("place", [0, 3, 7, 8, 11])  # of the length, or of its checksum
def test_a_damaged_length_is_found_before_anything_is_read(tmp_path: Path, place: int) -> None:
    folder = _shards(tmp_path / "x")
    _flip(folder / "train-00001-of-00004", 2, place)
    with pytest.raises(Error, match="train-00001-of-00004: record 2 is damaged"):
        data.tfrecords(folder, "train")


def test_a_shard_that_shrinks_or_goes_after_it_was_counted(tmp_path: Path) -> None:
    folder = _shards(tmp_path / "x")
    source = data.tfrecords(folder, "train", first_label=1)
    for change in (lambda path: path.write_bytes(b""), Path.unlink):
        change(folder / "train-00003-of-00004")
        for kind in ("training", "evaluation"):
            with pytest.raises(tf.errors.InvalidArgumentError, match="00003-of-00004, record 0: e"):
                _all(_made(source, kind, 1.0))


@pytest.mark.parametrize("split", ["*", "../x/train", "tr?in", "", ".", "train\0", "[t]rain"])
def test_a_split_is_a_name(tmp_path: Path, split: str) -> None:
    with pytest.raises(Error, match="split: expected a name such as 'train'"):
        data.tfrecords(_shards(tmp_path / "x"), split)


def test_odd_shards(tmp_path: Path) -> None:
    folder = _shards(tmp_path / "x", shards=2)
    content = (folder / "train-00000-of-00002").read_bytes()
    (folder / "train-00005-of-00002").write_bytes(content)
    with pytest.raises(Error, match=r"expected the shards 0\.\.1 of 2.* got train-00005-of-00002"):
        data.tfrecords(folder, "train")
    (folder / "train-00005-of-00002").unlink()
    (folder / "train-00000-of-00002").unlink()
    for make in (os.mkfifo, os.mkdir):
        make(folder / "train-00000-of-00002")
        with pytest.raises(Error, match="train-00000-of-00002: expected a file"):
            data.tfrecords(folder, "train")
        (os.rmdir if make is os.mkdir else os.unlink)(folder / "train-00000-of-00002")
    (folder / "train-00000-of-00002").symlink_to(folder / "train-00000-of-00002")
    with pytest.raises(Error, match="train-00000-of-00002: expected a file that can be read"):
        data.tfrecords(folder, "train")
    with pytest.raises(Error, match="expected a folder that can be read"):
        data.tfrecords(folder / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train-00000-of-00001").touch()
    with pytest.raises(Error, match="expected records in the shards of 'train', got none"):
        data.tfrecords(tmp_path / "empty", "train")


def _folder(folder: Path, classes: tuple[str, ...] = ("ant", "cat")) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in (0, 1):
            encoded = tf.io.encode_jpeg(_image(2 * number + image)).numpy()
            (folder / name / f"{image}.jpg").write_bytes(encoded)
    return folder


def test_what_is_no_file_is_named_and_does_not_hang(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    odd = folder / "cat" / "odd.jpg"
    with socket.socket(socket.AF_UNIX) as listener:
        kinds = (
            os.mkfifo,
            os.mkdir,
            lambda path: os.symlink(path, path),
            lambda path: os.symlink("nowhere", path),
            lambda path: os.symlink("/dev/zero", path),
            lambda path: listener.bind(str(path)),
        )
        for make in kinds:
            make(odd)
            with pytest.raises(Error, match=r"cat/odd.jpg: expected a file, got"):
                data.image_folder(folder)
            (os.rmdir if odd.is_dir() and not odd.is_symlink() else os.unlink)(odd)
    assert data.image_folder(folder).count == 4


def test_folders_that_are_hidden_empty_looped_or_of_one_class(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "x")
    (folder / ".git").mkdir()
    (folder / "cat" / "loop").symlink_to(folder)
    (folder / "cat" / "._0.jpg").write_bytes(b"a Macintosh wrote this")
    source = data.image_folder(folder)
    assert _all(data.evaluation(source, size=8, resize=8))[1].tolist() == [0, 0, 1, 1]
    (folder / "bee").mkdir()
    with pytest.raises(Error, match="x/bee: expected images of one class, got none"):
        data.image_folder(folder)
    with pytest.raises(Error, match="expected a folder for each class with images"):
        data.image_folder(folder / "bee")
    for missing in (folder / "nowhere", folder / "cat" / "0.jpg", "a\0b"):
        with pytest.raises(Error, match="expected a folder that can be read"):
            data.image_folder(missing)
    assert data.image_folder(_folder(tmp_path / "y", ("all",))).count == 2


def test_names_of_any_bytes_and_images_that_cannot_be_read(tmp_path: Path, said: list[str]) -> None:
    folder = _folder(tmp_path)
    os.rename(folder / "cat" / "0.jpg", os.fsencode(folder / "cat") + b"/\xff[0]*.jpg")
    source = data.image_folder(folder)
    assert len(_all(data.evaluation(source, size=8, resize=8))[0]) == 4
    (folder / "cat" / "1.jpg").unlink()  # after it was listed
    assert _all(_made(source, "evaluation", 0.25))[1].tolist() == [0, 0, 1]
    assert [text for text in said if "cat/1.jpg does not decode" in text] == said != []
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"at most 0 of 4 .* is \S*/cat/1\.jpg"
    ):
        _all(_made(source, "evaluation", 0.0))


@pytest.mark.parametrize("named", [False, True])
def test_a_source_of_the_users_own(named: bool) -> None:
    encoded = [tf.io.encode_png(_image(number)).numpy() for number in range(6)]
    pairs: Any = (encoded, np.arange(6))
    elements = (pairs, ["mine"] * 6, np.arange(6)) if named else pairs

    def examples(worker: int, workers: int, seed: int | None) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(elements)

    source = data.Source(6, examples)
    assert _all(data.evaluation(source, 4, size=8, resize=8))[1].tolist() == list(range(6))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"at most 0 of 7 .* got 1 of the 6"):
        _all(data.evaluation(data.Source(7, examples), 4, size=8, resize=8))


def test_shards_that_are_not_whole_are_named(tmp_path: Path) -> None:
    folder = _shards(tmp_path / "x")
    cut = folder / "train-00002-of-00004"
    content = cut.read_bytes()
    for size in (len(content) - 1, len(content) // 2 + 7, 5):
        cut.write_bytes(content[:size])
        with pytest.raises(Error, match=r"train-00002-of-00004: expected whole records, but rec"):
            data.tfrecords(folder, "train")
    cut.unlink()
    with pytest.raises(Error, match="expected 4 shards, but train-00002-of-00004 is missing"):
        data.tfrecords(folder, "train")
    cut.write_bytes(content)
    (folder / "train-00000-of-00002").write_bytes(content)
    with pytest.raises(Error, match=r"expected one set of shards, got some of \[2, 4\]"):
        data.tfrecords(folder, "train")
    with pytest.raises(Error, match="expected shards such as test-00000-of-00008, got none"):
        data.tfrecords(folder, "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 25}, r"batch_size: expected 1\.\.24, the images of one worker, got 25"),
        ({"batch_size": 8, "worker": 2, "workers": 2}, r"a worker of 0\.\.1, got 2"),
    ],
)
def test_wrong_numbers(source: data.Source, options: dict[str, int], message: str) -> None:
    with pytest.raises(Error, match=message):
        data.training(source, **options)
    with pytest.raises(Error, match="expected 0 < size <= resize"):
        data.evaluation(source, size=9, resize=8)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(Error, match=r"max_damaged: expected a share, 0\.\.1, got"):
            _made(source, "training", share)
        with pytest.raises(Error, match=r"max_damaged: expected a share, 0\.\.1, got"):
            _made(source, "evaluation", share)


def test_cifar10_in_this_layout(data_dir: Path, resnet8: Any) -> None:
    source = data.tfrecords(data_dir / "cifar10", "validation")
    assert source.count == 10_000
    part = data.evaluation(source, 500, size=32, resize=32).take(4)
    # The README of the data says 75.5 % of all 10,000; these are 2,000.
    assert 0.70 < tfdwd.evaluate(resnet8, part).top1 < 0.81
