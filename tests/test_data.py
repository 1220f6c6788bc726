"""Input pipelines on generated images in ImageNet's layouts, and on CIFAR-10 where it is there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfdwd
from tfdwd import data
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
    with pytest.raises(Error, match=r"expected a split of \['validation'\], got 'train'"):
        data.tfds("ramps", "train", folder=prepared)
    with pytest.raises(Error, match=r"imagenet2012: expected a prepared data set in .*tfds build"):
        data.tfds("imagenet2012", folder=prepared)
    with pytest.raises(Error, match="no_such: TensorFlow Datasets does not find it"):
        data.tfds("no_such", folder=prepared)


def test_few_damaged_images_are_left_out(tmp_path: Path) -> None:
    source = data.tfrecords(_shards(tmp_path / "x", damaged=(5,)), "train", first_label=1)
    images, labels = _all(data.training(source, 8, size=8, max_damaged=0.02))
    assert len(images) == 24 and 5 not in labels  # one came twice in its place
    kept = _all(data.evaluation(source, size=8, resize=8, max_damaged=0.02))[1]
    assert sorted(kept) == [number for number in range(24) if number != 5]


@pytest.mark.parametrize("damaged", [(5, 6, 7), (23,), tuple(range(24))])
def test_many_damaged_images_stop_it(tmp_path: Path, damaged: tuple[int, ...]) -> None:
    source = data.tfrecords(_shards(tmp_path / "x", damaged=damaged), "train", first_label=1)
    message = "do not decode|expected to contain"
    with pytest.raises(tf.errors.OpError, match=message):
        _all(data.training(source, 8, size=8, max_damaged=0.005))
    with pytest.raises(tf.errors.OpError, match=message):
        _all(data.evaluation(source, size=8, resize=8))


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


def test_cifar10_in_this_layout(data_dir: Path, resnet8: Any) -> None:
    source = data.tfrecords(data_dir / "cifar10", "validation")
    assert source.count == 10_000
    part = data.evaluation(source, 500, size=32, resize=32).take(4)
    # The README of the data says 75.5 % of all 10,000; these are 2,000.
    assert 0.70 < tfdwd.evaluate(resnet8, part).top1 < 0.81
