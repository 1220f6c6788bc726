"""The loop over epochs: steps, then what is measured, then what is kept."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import reporting, workers
from tfdwd.errors import Error
from tfdwd.training import checkpoints
from tfdwd.training.augmentation import Moves
from tfdwd.training.learner import averaged, step_of
from tfdwd.training.options import Options
from tfdwd.training.task import Task
from tfdwd.training.validation import Validation, is_better

Log = Callable[[int, dict[str, float]], None]


@dataclass
class Run:
    """One run of fine-tuning.

    Attributes:
      learner: trains the student.
      task: what it learns.
      options: the user's.
      epochs: in all.
      steps: of an epoch.
      moves: that images are changed by.
      validate: measures the student, or None.
      folder: for checkpoints, or None.
      log: takes an epoch and {name: value}.
      best: the weights that the student has at the end; None where nothing is measured.
    """

    learner: Any
    task: Task
    options: Options
    epochs: int
    steps: int
    moves: Moves
    validate: Validation | None
    folder: Path | None
    log: Log
    best: checkpoints.Best | None = None

    def train(self, stream: Iterator[Any], state: checkpoints.State | None) -> dict[str, Any]:
        """Trains to the last epoch; returns the history.

        The student has its best weights then, those it began with among them, and also after an
        error; without a validation its last ones.

        Args:
          stream: checked batches from the epoch on that comes next.
          state: to go on from, which the learner has already, or None.

        Raises:
          tfdwd.Error: a loss or weights that are not finite; data that ends too early.
        """
        first = 0 if state is None else state.epoch
        history = {} if state is None else {name: [*v] for name, v in state.history.items()}
        self._begin(state)
        step = step_of(self.learner)
        left = max(0, self.epochs - first)
        try:
            with reporting.progress(left * self.steps, "fine-tuning") as bar:
                for epoch in range(first, self.epochs):
                    loss = self._epoch(epoch, stream, step, bar)
                    self._check_weights(epoch)
                    with averaged(self.learner, self.options.ema):
                        self._end_epoch(epoch, loss, history)
                    self._write_state(epoch, history)
        finally:  # after an error or an interruption, too
            if self.best is not None:
                checkpoints.put(self.best.weights, self.learner.student.weights)
        if self.best is not None:
            self._save("best")  # which may be those of the start
            logging.info("before: %s, after: %s", self.best.before, self.best.values)
        elif self.options.ema is not None:
            self.learner.optimizer.finalize_variable_values(self.learner.trainable_variables)
        return history

    def _begin(self, state: checkpoints.State | None) -> None:
        """Measures the weights that are there, or that were best before an interruption."""
        if self.validate is None:
            return
        if state is None or state.best is None:
            found = self.validate(self.learner)
            self.best = checkpoints.Best(found, found, self._weights())
            return
        now = self._weights()
        checkpoints.put(state.best.weights, self.learner.student.weights)
        found = self.validate(self.learner)
        checkpoints.put(now, self.learner.student.weights)
        self.best = state.best
        if not _alike(found, state.best.values):
            logging.warning(
                "what is measured is not what it was before the interruption: the best weights "
                "gave %s then and %s now, from which it goes on", state.best.values, found,
            )  # fmt: skip
            self.best = checkpoints.Best(found, found, state.best.weights)

    def _weights(self) -> list[np.ndarray]:
        return checkpoints.values_of(self.learner.student.weights)

    def _save(self, name: str) -> None:
        if self.folder is not None and not workers.index():
            checkpoints.save_student(self.learner.student, self.folder, name)

    def _epoch(
        self, epoch: int, stream: Iterator[Any], step: Callable[[Any, Any], float], bar: Any
    ) -> float:
        """The mean loss over the images of one epoch."""
        total = images = 0.0
        for number in range(epoch * self.steps + 1, (epoch + 1) * self.steps + 1):
            batch = next(stream, None)
            if batch is None:
                raise Error(
                    f"dataset: the data ended after {number - 1} of "
                    f"{self.epochs * self.steps} steps, in epoch {epoch + 1}; data that "
                    "can be read only once must hold all of them: lower epochs or steps_per_epoch, "
                    "or give a list, a tf.data.Dataset or a function of the epoch"
                )
            loss = _stepped(step, *batch)
            if not np.isfinite(loss):
                raise Error(
                    f"the loss is {loss} at step {number}, in epoch {epoch + 1}: expected a finite "
                    "one; lower learning_rate, or look for images that are damaged or of huge "
                    "values (what was saved in folder before is still there)"
                )
            rows = len(batch[0][0])
            total, images = total + loss * rows, images + rows
            bar.update()
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        return total / images

    def _check_weights(self, epoch: int) -> None:
        for variable in self.learner.student.variables:
            values = keras.ops.convert_to_numpy(variable)
            if values.dtype.kind not in "biu" and not np.isfinite(values.astype(np.float32)).all():
                name = getattr(variable, "path", variable.name)
                raise Error(
                    f"weight {name} is not finite after epoch {epoch + 1}; lower learning_rate, or "
                    "look for images of huge values (what was saved in folder before is still "
                    "there)"
                )

    def _end_epoch(self, epoch: int, loss: float, history: dict[str, list[float]]) -> None:
        found = {} if self.validate is None else self.validate(self.learner)
        if self.best is not None:
            name = next(iter(found))
            if is_better(name, found[name], self.best.values[name]):
                self.best = checkpoints.Best(self.best.before, found, self._weights())
                self._save("best")
        found = {"loss": loss} | found
        for name in {**history, **found}:  # validation may begin or end with a resumption
            column = history.setdefault(name, [np.nan] * epoch)
            column.append(found.get(name, np.nan))
        logging.info("epoch %d: %s", epoch + 1, found)
        self.log(epoch, found)
        self._save("last")

    def _write_state(self, epoch: int, history: dict[str, list[float]]) -> None:
        if self.folder is None or workers.index():
            return
        state = checkpoints.State(
            epoch=epoch + 1,
            epochs=self.epochs,
            rate=self.options.learning_rate,
            moves=self.moves,
            features=self.task.paths,
            history=history,
            kinds=self.task.kinds,
            deviations=self.task.deviations,
            variables=checkpoints.values_of(checkpoints.variables_of(self.learner)),
            best=self.best,
        )
        checkpoints.write(self.folder, state)


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether the same was measured, but for rounding, which other processors do in another way."""
    return [*one] == [*other] and np.allclose([*one.values()], [*other.values()], 1e-2, 1e-6)


def _stepped(step: Callable[[Any, Any], float], inputs: Any, labels: Any) -> float:
    try:
        with warnings.catch_warnings():
            # Of an output that is left out; the weights before it stay.
            warnings.filterwarnings("ignore", "Gradients do not exist")
            return step(inputs, labels)
    except ValueError as error:
        if "No gradients provided" not in str(error):
            raise
        raise Error(
            "no trainable weight changes the loss; set trainable to True, or use a loss that has a "
            "gradient"
        ) from error


def log_of(folder: str | os.PathLike[str] | None, rate: Callable[[int], Any], steps: int) -> Log:
    """What logs to a folder for TensorBoard; nothing where there is none.

    Args:
      folder: made if it does not exist.
      rate: the learning rate of a step.
      steps: of an epoch.

    Raises:
      tfdwd.Error: the folder cannot be written to.
    """
    if folder is None or workers.index():
        return lambda epoch, found: None
    import tensorflow as tf

    writers = {
        name: tf.summary.create_file_writer(str(Path(folder) / name))
        for name in ("train", "validation")
    }

    def log(epoch: int, found: dict[str, float]) -> None:
        values = {f"train/{name}": value for name, value in found.items()}
        values["train/learning_rate"] = float(rate((epoch + 1) * steps))
        for name, value in values.items():
            part, _, own = name.replace("train/val_", "validation/").partition("/")
            with writers[part].as_default():
                tf.summary.scalar(f"epoch_{own}", value, step=epoch)
            writers[part].flush()

    return log
