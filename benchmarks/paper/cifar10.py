"""What the experiments on CIFAR-10 share: its images, and training that can be interrupted."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

import tfdwd
from tfdwd import files

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from common import DATA

HELD_OUT, CALIBRATION, BATCH = 5000, 1024, 128
STEPS = (50_000 - HELD_OUT) // BATCH  # of an epoch


@dataclasses.dataclass(frozen=True)
class Split:
    """The training images, in parts.

    Attributes:
      calibration: the first images, (CALIBRATION, size, size, 3) uint8.
      train: a function of the epoch that gives its batches, all but the held-out images.
      held_out: the last images, cut from their centres, and their labels.
    """

    calibration: np.ndarray
    train: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]
    held_out: tuple[np.ndarray, np.ndarray]


def split(size: int, seed: int) -> Split:
    """The training images at a size in pixels, at most 32; the seed is of order and crops."""
    images, labels = load("train")
    return Split(
        centre(images[:CALIBRATION], size),
        augmented(images[:-HELD_OUT], labels[:-HELD_OUT], size, seed),
        (centre(images[-HELD_OUT:], size), labels[-HELD_OUT:]),
    )


def test(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images, cut from their centres, and their labels."""
    images, labels = load("validation")
    return centre(images, size), labels


def load(part: str) -> tuple[np.ndarray, np.ndarray]:
    """All images (count, 32, 32, 3) uint8 and labels of "train" or "validation"."""
    from tfdwd import data  # which is TensorFlow's

    batches = data.evaluation(data.tfrecords(DATA / "cifar10", part), 500, size=32, resize=32)
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def centre(images: np.ndarray, size: int) -> np.ndarray:
    """The middle (size, size) pixels of each image."""
    start = (32 - size) // 2
    return images[:, start : start + size, start : start + size]


def augmented(
    images: np.ndarray, labels: np.ndarray, size: int, seed: int
) -> Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """A function of the epoch that gives its batches: images cropped within 8 px, and flipped."""
    border = max(0, size + 8 - 32) // 2
    images = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)), mode="reflect")
    across = np.arange(size)

    def epoch_of(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        source = np.random.default_rng((seed, epoch))
        order = source.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            top, left = source.integers(0, images.shape[1] - size + 1, (2, BATCH, 1))
            columns = left + across
            flipped = source.integers(0, 2, BATCH, bool)
            columns[flipped] = columns[flipped, ::-1]
            rows = (top + across)[:, :, None]
            yield images[chosen[:, None, None], rows, columns[:, None]], labels[chosen]

    return epoch_of


class Trained(NamedTuple):
    """A network before and after training, and the history of `tfdwd.finetune`."""

    before: keras.Model
    after: keras.Model
    history: dict[str, list[float]]


def trained(
    folder: pathlib.Path, make: Callable[[], keras.Model], images: Any, **options: Any
) -> Trained:
    """Trains a network; goes on where an earlier call was interrupted.

    Args:
      folder: for both networks, the checkpoint, and the history as JSON.
      make: makes the network, if the folder does not hold it.
      images: what `tfdwd.finetune` trains on.
      options: more of `tfdwd.finetune`; the weights are those of the last step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.keras" for name in ("before", "after")}
    if not paths["before"].exists():
        files.save_model(make(), paths["before"])
    if not paths["after"].exists():
        model = keras.models.load_model(paths["before"], compile=False)
        history = tfdwd.finetune(
            model,
            images,
            steps_per_epoch=STEPS,
            folder=folder,
            resume=True,
            validation=None,
            **options,
        )
        files.write_whole(folder / "history.json", json.dumps(history.history))
        files.save_model(model, paths["after"])
    networks = (keras.models.load_model(path, compile=False) for path in paths.values())
    return Trained(*networks, json.loads((folder / "history.json").read_text()))
