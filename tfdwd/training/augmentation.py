"""Images changed anew each time that they are trained on: mirrored, shifted, mixed in pairs."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import likeness, outputs
from tfdwd.errors import Error, one_line
from tfdwd.execution import predictor
from tfdwd.shapes import in_batches

_SHIFT = 8  # by up to this part of a side
_ALIKE = 0.6  # agreement with the answers for the image as it was, from which a move is used
_MIXED = 0.75  # of the epochs
# How many times as far from the teacher a student may be on mixed images as on others, so that
# training is not mostly about mixtures. Of students that gained by them it was 1.4 and 1.8 times,
# of one that lost 11.
_FARTHER = 4
_BATCH = 32


@dataclass(frozen=True)
class Moves:
    """What is done to images, drawn for each.

    Attributes:
      mirrors: whether half of them are mirrored, left and right.
      shifts: by up to how many pixels they are moved down and to the right, or up and to the left;
        what is missing at the edge is reflected.
      mixes: whether each is mixed with another one of the batch, in parts from 0 to 1 that are all
        equally likely (mixup; Zhang et al. 2018, arXiv 1710.09412; as drawn by Beyer et al. 2022,
        arXiv 2106.05237, where the teacher answers for the mixed image).

    Example:
      >>> moves = Moves(mirrors=True, shifts=(1, 1), mixes=False)
      >>> moves(np.zeros((2, 8, 8, 3), np.uint8), np.random.default_rng(0)).shape
      (2, 8, 8, 3)
    """

    mirrors: bool = False
    shifts: tuple[int, int] = (0, 0)
    mixes: bool = False

    def __call__(self, images: np.ndarray, source: np.random.Generator) -> np.ndarray:
        """Images (batch, h, w, channels), moved; in float32 where whole numbers are mixed."""
        count = len(images)
        if self.mirrors or any(self.shifts):
            down, right = (source.integers(-most, most + 1, count) for most in self.shifts)
            images = moved(images, source.integers(0, 1 + self.mirrors, count) > 0, down, right)
        if self.mixes:
            if images.dtype.kind in "biu":
                images = images.astype(np.float32)
            share = source.uniform(0, 1, (count, 1, 1, 1)).astype(images.dtype)
            others = images[source.permutation(count)]
            images = others + share * (images - others)
        return images

    def of_epochs(self, epochs: int) -> "Callable[[int], Moves]":
        """The moves of each epoch: in the last ones, as in use, nothing is mixed."""
        plain = dataclasses.replace(self, mixes=False)
        return lambda epoch: self if epoch < _MIXED * epochs else plain


def with_moved(inputs: Sequence[np.ndarray], moves: Moves, seed: int) -> list[np.ndarray]:
    """Images, and behind them the same ones moved once, not mixed.

    Args:
      inputs: one array (images, ...) for each input; of one, (images, h, w, channels), if the moves
        move anything, else they stay as they are.
      moves: of the images.
      seed: of what is drawn for each.
    """
    plain = dataclasses.replace(moves, mixes=False)
    if plain == Moves():
        return list(inputs)
    [images] = inputs
    return [np.concatenate([images, plain(images, np.random.default_rng(seed))])]


def moved(
    images: np.ndarray, mirrored: np.ndarray, down: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Images or maps, first mirrored, then shifted, with their edges reflected.

    Args:
      images: (images, h, w, channels).
      mirrored: whether each is, (images,).
      down, right: pixels, less than a side, for each, (images,).

    Example:
      >>> row = np.arange(3).reshape(1, 1, 3, 1)
      >>> moved(row, np.array([True]), np.array([0]), np.array([1])).ravel()
      array([1, 2, 1])
    """
    count, height, width = images.shape[:3]
    rows = _reflected(np.arange(height) - down[:, None], height)
    columns = _reflected(np.arange(width) - right[:, None], width)
    columns = np.where(mirrored[:, None], width - 1 - columns, columns)
    return images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(places: np.ndarray, size: int) -> np.ndarray:
    places = np.abs(places)
    return np.where(places >= size, 2 * (size - 1) - places, places)


def chosen(
    model: Any, images: Sequence[np.ndarray], kinds: Sequence[str], student: Any = None
) -> Moves:
    """The moves that a network's answers stand: for a moved image it gives the answer of before.

    The answer is that of the image; of a map (images, h, w, ...) it is the map, moved alike. What
    is moved at random must say nothing of left and right or of places: the letters, the boxes and
    the landmarks of a network that knows these stay where they are.

    Args:
      model: the teacher, or where there is none the student.
      images: one array (images, ...) for each input, on which moves are tried.
      kinds: of the outputs, as `tfdwd.outputs.KINDS`.
      student: what a teacher alone says the outputs of; None where labels do, which mixed images
        have not. Images of classifiers are mixed where the student is about as far from the teacher
        on mixed images as on others.

    Returns:
      No moves at all for what is not one input of images (images, h, w, channels).
    """
    [shown, *others] = images
    if others or shown.ndim != 4 or keras.config.image_data_format() != "channels_last":
        return Moves()
    height, width = shown.shape[1:3]
    run = predictor(model)
    fixed = model.inputs[0].shape[0]

    def answers(given: np.ndarray, run: Any = run) -> list[np.ndarray]:
        found = in_batches(run, [given], fixed or min(_BATCH, len(given)))
        return [outputs.without_logits(*own) for own in zip(found, kinds, strict=True)]

    wanted = answers(shown)

    def stand(mirrored: bool, down: int, right: int) -> bool:
        found = answers(_alike(shown, mirrored, down, right))
        for before, after in zip(wanted, found, strict=True):
            if before.ndim > 3:
                of_map = [down * before.shape[1] / height, right * before.shape[2] / width]
                before = _alike(before, mirrored, *map(round, of_map))
            if not likeness.measure(before)(after)[1] >= _ALIKE:
                return False
        return True

    def apart(given: np.ndarray, wanted: list[np.ndarray]) -> float:
        found = answers(given, predictor(student))
        pairs = zip(wanted, found, strict=True)
        return sum(likeness.measure(own)(theirs)[0] for own, theirs in pairs)

    def mix_well() -> bool:
        mixed = Moves(mixes=True)(shown, np.random.default_rng(0))
        return apart(mixed, answers(mixed)) <= _FARTHER * apart(shown, wanted)

    shifts = height // _SHIFT, width // _SHIFT
    of_classes = all(kind != outputs.VALUES for kind in kinds)
    found = Moves(
        mirrors=width > 1 and stand(True, 0, 0),
        shifts=shifts if any(shifts) and stand(False, *shifts) else (0, 0),
        mixes=student is not None
        and of_classes
        and all(array.ndim == 2 for array in wanted)
        and mix_well(),
    )
    logging.info("augmentation: %s", found)
    return found


def _alike(images: np.ndarray, mirrored: bool, down: int, right: int) -> np.ndarray:
    every = np.ones(len(images), int)
    return moved(images, every * mirrored > 0, every * down, every * right)


def given(function: Any, seed: int) -> Callable[[int, list[np.ndarray]], list[np.ndarray]]:
    """A user's own augmentation, of the one input of a model.

    Args:
      function: a Keras layer, such as keras.layers.RandomRotation, or a function of a batch
        of images, both of which give as many images of the same shape.
      seed: of the layers; a function draws as it likes.

    Returns:
      (step, inputs) -> inputs.
    """

    def apply(step: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
        [images] = inputs
        is_layer = isinstance(function, keras.layers.Layer)
        try:
            if is_layer:
                for number, variable in enumerate(function.variables):
                    if variable.name == "seed_generator_state":
                        source = np.random.default_rng((seed, step, number))
                        variable.assign(source.integers(0, 2**31, 2))
            found = function(images, training=True) if is_layer else function(images)
            found = np.asarray(keras.ops.convert_to_numpy(found))
        except Exception as error:  # a user's function may raise anything
            raise Error(
                f"augment: it failed on a batch of shape {images.shape}: {type(error).__name__}: "
                f"{one_line(error)[:300]}"
            ) from error
        if found.shape != images.shape or not np.isfinite(found).all():
            raise Error(
                f"augment: expected finite images of the shape {images.shape} that it was given, "
                f"got {found.shape}"
            )
        return [found]

    return apply
