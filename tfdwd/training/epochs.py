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
from tfdwd.batches import batches, can_be_read_again, elements, is_whole
from tfdwd.errors import Error, one_line

_SAMPLE = 256  # rows, where there are so many
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
      seed: of the order of arrays, and of which of them are held back.
      steps: of an epoch; by default as many as the data has.
      held: part of the rows of arrays that is held back.
    """

    model: keras.Model
    batch_size: int
    fixed: int | None
    with_labels: bool
    seed: int
    steps: int | None
    held: float


# What `tfdwd.training.augmentation` does to images.
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Epochs:
    """The data as one stream.

    Attributes:
      steps: of an epoch.
      stream: so many batches for each epoch; it ends only where data that can be read once ends.
      labels: all of them, where the data is arrays; else None.
      held: what is held back of arrays; None where nothing is.
      sample: inputs of some rows of arrays, the same for every epoch; None of other data.
      augmented: of arrays, gives the stream again, from its start, with images changed by what a
        function gives for each epoch; else None.
    """

    steps: int
    stream: Iterator[Batch]
    labels: Any = None
    held: Batch | None = None
    sample: list[np.ndarray] | None = None
    augmented: Callable[[Callable[[int], Augment]], Iterator[Batch]] | None = None


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
        arrays = _Arrays(dataset, reading, reading.held)
        steps = reading.steps or arrays.steps

        def stream_of(augment: Callable[[int], Augment] | None = None) -> Iterator[Batch]:
            epochs = ((e, None if augment is None else augment(e)) for e in itertools.count(first))
            every = (itertools.islice(arrays.shuffled(e, own), steps) for e, own in epochs)
            return itertools.chain.from_iterable(every)

        return Epochs(
            steps, stream_of(), arrays.labels, arrays.held, arrays.sample, augmented=stream_of
        )
    steps, stream = _of_iterable(dataset, reading)
    if first:
        logging.info(
            "reading over %d batches to where the run stopped; a function of the epoch goes on at "
            "once",
            first * steps,
        )
    return Epochs(steps, itertools.islice(stream, first * steps, None))


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
    """Arrays, shuffled for each epoch; each worker takes its part of each step.

    Attributes:
      labels: of all rows.
      held: the rows that are in no step, or None.
      sample: inputs of some rows from all over the arrays.
      steps: of an epoch.
    """

    def __init__(self, data: Any, reading: Reading, held: float) -> None:
        whole = batches(data, reading.model, _rows(data), reading.with_labels)
        self._inputs, self.labels = next(whole)
        self._seed, self._fixed = reading.seed, reading.fixed
        self._size = reading.fixed or reading.batch_size
        rows = len(self._inputs[0])
        self._rows, count = np.arange(rows), int(rows * held)
        self.held = None
        spread = np.linspace(0, rows - 1, min(rows, _SAMPLE)).astype(int)
        self.sample = [array[spread] for array in self._inputs]
        if count:
            order = np.random.default_rng(self._seed).permutation(rows)
            self._rows = np.sort(order[count:])
            self.held = self._taken(np.sort(order[:count]))
        self.steps = len(self._rows) // (self._size * workers.count())
        if workers.count() > 1 and not self.steps:
            raise Error(
                f"dataset: expected at least one batch of {self._size} for each of "
                f"{workers.count()} workers, got {len(self._rows)} images"
            )
        self.steps = max(1, self.steps)

    def shuffled(self, epoch: int, augment: Augment | None = None) -> Iterator[Batch]:
        """Whole batches only, unless there is not even one: every step is of one shape."""
        source = np.random.default_rng((self._seed, epoch))
        drawn = np.random.default_rng((self._seed, epoch, 1))  # the order is that without it
        together = self._size * workers.count()
        while True:
            order = source.permutation(self._rows)
            for number in range(self.steps):
                step = order[number * together : (number + 1) * together]
                if self._fixed:
                    step = np.resize(step, together)  # of too few, some twice
                own = slice(workers.index() * self._size, (workers.index() + 1) * self._size)
                if augment is None:
                    yield self._taken(step[own])
                    continue
                # All of the step, as it is with one worker.
                [images] = self._inputs
                _, labels = self._taken(step[own])
                yield [augment(images[step], drawn)[own]], labels

    def _taken(self, rows: np.ndarray) -> Batch:
        labels = None if self.labels is None else take(self.labels, rows)
        return [array[rows] for array in self._inputs], labels


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
            arrays = _Arrays(data, reading, 0.0)
            return reading.steps or arrays.steps, arrays.shuffled(epoch)
        return _of_iterable(data, reading, f" of epoch {epoch}", lambda: data_of(epoch))

    steps, stream = opened(first)

    def every() -> Iterator[Batch]:
        yield from itertools.islice(stream, steps)
        for epoch in itertools.count(first + 1):
            yield from itertools.islice(opened(epoch)[1], steps)

    return Epochs(steps, every())


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
    once = again is None and not can_be_read_again(data)
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
