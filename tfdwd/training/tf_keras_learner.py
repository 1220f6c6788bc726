"""As `learner.KerasLearner`, for models of tf_keras, which takes seconds to load."""

from typing import Any

import tensorflow as tf
import tf_keras

from tfdwd import workers
from tfdwd.training import features
from tfdwd.training.objective import Objective


class TfKerasLearner(tf_keras.Model):
    """A tf_keras model that is the student, with the objective for its loss."""

    def __init__(self, student: Any, run: features.Runner, objective: Objective) -> None:
        super().__init__()
        self.student, self.run, self.objective = student, run, objective
        self.mean = tf_keras.metrics.Mean("loss")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.run(inputs, training)

    def train_step(self, data: Any) -> dict[str, Any]:
        inputs, labels = data
        with tf.GradientTape() as tape:
            loss = self.objective(inputs, labels, self(inputs, training=True))
            # The gradients of the replicas are added up.
            scaled = loss / workers.replicas()
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}

    def test_step(self, data: Any) -> dict[str, Any]:
        inputs, labels = data
        self.mean.update_state(self.objective(inputs, labels, self(inputs, training=False)))
        return {"loss": self.mean.result()}
