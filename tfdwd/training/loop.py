"""The loop over epochs: steps, then validation, then what is kept."""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import evaluation, reporting, workers
from tfdwd.batches import batches
from tfdwd.errors import Error
from tfdwd.training import checkpoints
from tfdwd.training.epochs import all_labels, is_labelled, take
from tfdwd.training.learner import averaged, step_of
from tfdwd.training.options import Options
from tfdwd.training.task import Task

Log = Callable[[int, dict[str, float]], None]


@dataclass
class Run:
    """One run of fine-tuning.

    Attributes:
      learner: trains the student.
      task: what it learns.
      options: the user's.
      steps: of an epoch.
      validate: gives {name: value} of the student, or None.
      folder: for checkpoints, or None.
      log: takes an epoch and {name: value}.
    """

    learner: Any
    task: Task
    options: Options
    steps: int
    validate: Callable[[Any], dict[str, float]] | None
    folder: Path | None
    log: Log

    def train(self, stream: Iterator[Any], state: checkpoints.State | None) -> dict[str, Any]:
        """Trains to the last epoch; returns the history.

        Args:
          stream: checked batches from the epoch on that comes next.
          state: to go on from, which the learner has already, or None.

        Raises:
          tfdwd.Error: a loss or weights that are not finite; data that ends too early.
        """
        first = 0 if state is None else state.epoch
        history = {} if state is None else {name: [*v] for name, v in state.history.items()}
        step = step_of(self.learner)
        left = max(0, self.options.epochs - first)
        with reporting.progress(left * self.steps, "fine-tuning") as bar:
            for epoch in range(first, self.options.epochs):
                loss = self._epoch(epoch, stream, step, bar)
                self._check_weights(epoch)
                with averaged(self.learner, self.options.ema):
                    self._end_epoch(epoch, loss, history)
                self._write_state(epoch, history)
        if self.options.ema is not None:
            self.learner.optimizer.finalize_variable_values(self.learner.trainable_variables)
        return history

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
                    f"{self.options.epochs * self.steps} steps, in epoch {epoch + 1}; data that "
                    "can be read only once must hold all of them: lower epochs or steps_per_epoch, "
                    "or give a list, a tf.data.Dataset or a function of the epoch"
                )
            loss = _stepped(step, *batch)
            if not np.isfinite(loss):
                raise Error(
                    f"the loss is {loss} at step {number}, in epoch {epoch + 1}: expected a finite "
                    "one; lower learning_rate, or look for damaged images (what was saved in "
                    "folder before is still there)"
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
                    f"weight {name} is not finite after epoch {epoch + 1}; lower learning_rate "
                    "(what was saved in folder before is still there)"
                )

    def _end_epoch(self, epoch: int, loss: float, history: dict[str, list[float]]) -> None:
        student = self.learner.student
        found = {"loss": loss} | ({} if self.validate is None else self.validate(self.learner))
        best = all(
            _is_better(name, value, history.get(name, []))
            for name, value in found.items()
            if name.startswith("val_")
        )
        for name in {**history, **found}:  # validation may begin or end with a resumption
            column = history.setdefault(name, [np.nan] * epoch)
            column.append(found.get(name, np.nan))
        logging.info("epoch %d: %s", epoch + 1, found)
        self.log(epoch, found)
        if self.folder is None or workers.index():
            return
        if self.validate is not None and best:
            checkpoints.save_student(student, self.folder, "best")
        checkpoints.save_student(student, self.folder, "last")

    def _write_state(self, epoch: int, history: dict[str, list[float]]) -> None:
        if self.folder is None or workers.index():
            return
        values = checkpoints.values_of(self.learner)
        state = checkpoints.State(epoch + 1, history, self.task.kinds, self.task.deviations, values)
        checkpoints.write(self.folder, state)


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


def _is_better(name: str, value: float, before: list[float]) -> bool:
    sign = 1 if name == "val_top1" else -1
    return not any(sign * value <= sign * other for other in before)  # which may be NaN


def validation_of(
    data: Any, model: Any, task: Task, *, batch_size: int, fixed: int | None
) -> Callable[[Any], dict[str, float]]:
    """What validates a learner: of a classifier with labels the top-1, else the loss.

    Args:
      data: the user's.
      model: the student.
      task: what it learns.
      batch_size: images that are run at once.
      fixed: the same, where student or teacher take no other number.

    Raises:
      tfdwd.Error: the data is empty, can be read only once or never ends; labels do not fit.
    """
    if hasattr(data, "__next__") and not hasattr(data, "__getitem__"):
        raise Error(
            "validation: expected arrays, a tf.data.Dataset, or a list of batches, that can be "
            f"read after each epoch; got {type(data).__name__}"
        )
    if getattr(data, "cardinality", None) and int(data.cardinality()) == -1:
        raise Error("validation: the data is endless; cut it with .take(n)")
    labelled = is_labelled(data, model)
    if task.needs_labels and not labelled:
        raise Error("validation: expected (inputs, labels), got data without labels")
    labels = all_labels(data, model) if labelled else None
    if labels is not None:
        task.checked(labels)
    if labelled and task.is_classifier:
        return lambda learner: {
            "val_top1": evaluation.evaluate(learner.student, data, metric="top1").top1
        }

    def mean_loss(learner: Any) -> dict[str, float]:
        total = images = 0.0
        stream = batches(data, model, fixed or batch_size, task.needs_labels)
        for inputs, own in stream:
            rows = len(inputs[0])
            checked = task.checked(own, int(images))
            if fixed:  # the first images fill the last batch up
                filled = np.resize(np.arange(rows), fixed)
                inputs, checked = take(inputs, filled), take(checked, filled)
            learner.test_on_batch(tuple(inputs), checked)
            total += float(learner.get_metrics_result()["loss"]) * rows
            images += rows
        loss = total / images
        if not np.isfinite(loss):
            raise Error(f"validation: the loss is {loss}; expected a finite one")
        return {"val_loss": loss}

    return mean_loss


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
