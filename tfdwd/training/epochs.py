"""The batches of all epochs, of any kind of data; each epoch is as many steps long."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import workers
from tfdwd.batches import batches, elements, is_whole
from tfdwd.errors import Error, one_line

_NO_END = 2**62  # rows: the steps bound what is read
# Inputs (rows, ...) in the order of the model's, and labels: an array, a dict or a list of these.
Batch = tuple[list[np.ndarray], Any]


@dataclass(frozen=True)
class Reading:
    """How data is read.

    Attributes:
      model: says which inputs are expected.
      batch_size: for arrays.
      fixed: rows of every batch, where the model has such a fixed size.
      with_labels: whether labels are wanted.
      seed: of the order of arrays.
      steps: of an epoch; by default as many as the data has.
    """

    model: keras.Model
    batch_size: int
    fixed: int | None
    with_labels: bool
    seed: int
    steps: int | None


@dataclass(frozen=True)
class Epochs:
    """The data as one stream.

    Attributes:
      steps: of an epoch.
      stream: so many batches for each epoch; it ends only where data that can be read once ends.
      labels: all of them, where the data is arrays; else None.
    """

    steps: int
    stream: Iterator[Batch]
    labels: Any


def open_epochs(dataset: Any, reading: Reading, first: int) -> Epochs:
    """Opens data, once, at the place where an epoch begins.

    Args:
      dataset: as `tfdwd.finetune` takes it. Arrays are shuffled for each epoch. Of a function of
        the epoch, the epoch's data is cut to the steps, or read again where it is shorter. An
        iterable is read on from epoch to epoch, and again from its start where it ends.
      reading: how.
      first: the epoch, from 0, to begin with.

    Raises:
      tfdwd.Error: the data is wrong or empty, or its length is unknown and no steps are given.
    """
    if callable(dataset) and not hasattr(dataset, "__iter__"):
        return _of_function(dataset, reading, first)
    if is_whole(dataset, reading.model):
        arrays = _Arrays(dataset, reading)
        steps = reading.steps or arrays.steps
        every = (itertools.islice(arrays.shuffled(e), steps) for e in itertools.count(first))
        return Epochs(steps, itertools.chain.from_iterable(every), arrays.labels)
    steps, stream = _of_iterable(dataset, reading)
    if first:
        logging.info(
            "reading over %d batches to where the run stopped; a function of the epoch goes on at "
            "once",
            first * steps,
        )
    return Epochs(steps, itertools.islice(stream, first * steps, None), None)


def is_labelled(data: Any, model: keras.Model) -> bool:
    """Whether data that can be read more than once holds labels."""
    if not is_whole(data, model):
        data = getattr(data, "element_spec", None) or next(elements(data, model), None)
    return isinstance(data, tuple) and len(data) > 1


def all_labels(data: Any, model: keras.Model) -> Any:
    """The labels of data that is arrays; else None."""
    if not is_whole(data, model):
        return None
    return next(batches(data, model, _rows(data), True))[1]


def take(labels: Any, rows: Any) -> Any:
    """Some rows of labels of any structure."""
    return keras.tree.map_structure(lambda array: array[rows], labels)


def _rows(data: Any) -> int:
    """How many rows arrays seem to have, at least 1; whether they do is checked elsewhere."""
    shapes = [tuple(getattr(array, "shape", ())) for array in keras.tree.flatten(data)]
    return max([1, *(shape[0] or 1 for shape in shapes if shape)])


class _Arrays:
    """Arrays, shuffled for each epoch; each worker takes its part of each step."""

    def __init__(self, data: Any, reading: Reading) -> None:
        whole = batches(data, reading.model, _rows(data), reading.with_labels)
        self.inputs, self.labels = next(whole)
        self.rows, self.seed, self.fixed = len(self.inputs[0]), reading.seed, reading.fixed
        self.size = reading.fixed or reading.batch_size
        self.steps = self.rows // (self.size * workers.count())
        if workers.count() > 1 and not self.steps:
            raise Error(
                f"dataset: expected at least one batch of {self.size} for each of "
                f"{workers.count()} workers, got {self.rows} images"
            )
        self.steps = max(1, self.steps)

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        """Whole batches only, unless there is not even one: every step is of one shape."""
        source = np.random.default_rng((self.seed, epoch))
        while True:
            order = source.permutation(self.rows)
            for number in range(self.steps):
                start = (number * workers.count() + workers.index()) * self.size
                chosen = order[start : start + self.size]
                if self.fixed:
                    chosen = np.resize(chosen, self.fixed)  # of too few, some twice
                labels = None if self.labels is None else take(self.labels, chosen)
                yield [array[chosen] for array in self.inputs], labels


def _of_function(dataset: Callable[[int], Any], reading: Reading, first: int) -> Epochs:
    try:
        inspect.signature(dataset).bind(first)
    except ValueError:  # some show none
        pass
    except TypeError as error:
        raise Error(
            f"dataset: expected a function of the epoch's number, which can be called as "
            f"dataset({first}), got one that cannot: {error}"
        ) from error

    def data_of(epoch: int) -> Any:
        try:
            return dataset(epoch)
        except Error:
            raise
        except Exception as error:  # a user's function may raise anything
            raise Error(
                f"dataset: the function failed for epoch {epoch}: {type(error).__name__}: "
                f"{one_line(error)}"
            ) from error

    def opened(epoch: int) -> tuple[int, Iterator[Batch]]:
        data = data_of(epoch)
        if is_whole(data, reading.model):
            arrays = _Arrays(data, reading)
            return reading.steps or arrays.steps, arrays.shuffled(epoch)
        return _of_iterable(data, reading, f" of epoch {epoch}", lambda: data_of(epoch))

    steps, stream = opened(first)

    def every() -> Iterator[Batch]:
        yield from itertools.islice(stream, steps)
        for epoch in itertools.count(first + 1):
            yield from itertools.islice(opened(epoch)[1], steps)

    return Epochs(steps, every(), None)


def _of_iterable(
    data: Any, reading: Reading, which: str = "", again: Callable[[], Any] | None = None
) -> tuple[int, Iterator[Batch]]:
    """Steps of one pass, and the batches of pass after pass."""
    model, with_labels = reading.model, reading.with_labels
    opened = elements(data, model)
    first = next(opened, None)
    if first is None:
        raise Error(
            f"dataset: expected at least one batch, got none{which}; a generator can be read only "
            "once"
        )
    [(inputs, _)] = batches(iter([first]), model, 2**31, with_labels)
    rows = len(inputs[0])
    steps = reading.steps or _length(data, rows, reading.fixed)
    # The iterators of `ImageDataGenerator.flow` can be read again, by index.
    once = again is None and hasattr(data, "__next__") and not hasattr(data, "__getitem__")
    passes = _passes(
        itertools.chain([first], opened),
        None if once else lambda: elements((again or (lambda: data))(), model),
        which,
    )
    if reading.fixed:  # what a pass leaves over goes on in the next
        joined = itertools.chain.from_iterable(passes)
        return steps, batches(joined, model, reading.fixed, with_labels, images=_NO_END)
    cut = (batches(own, model, rows, with_labels, images=_NO_END) for own in passes)
    return steps, itertools.chain.from_iterable(cut)


def _passes(
    opened: Iterator[Any], again: Callable[[], Iterator[Any]] | None, which: str
) -> Iterator[Iterable[Any]]:
    yield opened
    while again is not None:
        opened = again()
        first = next(opened, None)
        if first is None:
            raise Error(
                f"dataset: the data{which} was empty when it was read again; give data that can be "
                "read more than once, or a function of the epoch"
            )
        yield itertools.chain([first], opened)


def _length(data: Any, rows: int, fixed: int | None) -> int:
    try:
        length = len(data)
    except Exception as error:  # no length, or whatever a user's own __len__ raises
        raise Error("dataset: the number of batches is unknown; pass steps_per_epoch") from error
    return max(1, length * rows // fixed if fixed else length)
