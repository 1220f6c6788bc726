import keras
import numpy as np
import pytest
from cases import HIDING, NETWORKS, difference, inputs_of, network, outputs_of

from tfdwd import graph
from tfdwd.errors import Error


def run(traced, inputs):
    """Runs a traced graph call by call."""
    values = dict(zip(traced.inputs, keras.tree.flatten(inputs), strict=True))
    for call in traced.calls:
        args, kwargs = call.fill(values)
        assert set(call.inputs) <= set(values)
        results = keras.tree.flatten(call.operation(*args, **kwargs))
        values.update(zip(call.outputs, results, strict=True))
    return values


@pytest.mark.parametrize("name", [*NETWORKS, *HIDING])
def test_the_calls_in_order_give_the_models_outputs_and_the_shapes_stated(name):
    model = network(name)
    inputs = inputs_of(model)
    traced = graph.trace(model)
    values = run(traced, inputs)
    found = [np.asarray(values[n], np.float32) for n in traced.outputs]
    # The same operations on the same numbers; a nested model in half precision is not among them.
    assert difference(found, outputs_of(model, inputs)) < 1e-6
    for n, value in values.items():
        stated = traced.specs[n].shape[1:]
        assert len(stated) == len(value.shape[1:])
        assert all(a in (None, b) for a, b in zip(stated, value.shape[1:], strict=True))
        assert None not in stated or name == "time steps, open"
        assert traced.specs[n].dtype == keras.backend.standardize_dtype(value.dtype)


def test_paths_are_the_names_of_the_models_around():
    paths = [call.path for call in graph.trace(network("nested twice")).calls]
    assert paths[:2] == ["first", "middle/inner/one"]
    assert paths[3:5] == ["middle/inner/two", "middle/middle_conv"]


def test_a_model_called_twice_gives_two_calls_of_each_layer():
    calls = graph.trace(network("shared model")).calls
    ones = [call for call in calls if call.path == "inner/one"]
    assert len(ones) == 2
    assert ones[0].operation is ones[1].operation
    assert set(ones[0].outputs).isdisjoint(ones[1].outputs)


def test_inputs_given_by_name_in_another_order():
    first, second = keras.Input((4,), name="b"), keras.Input((4,), name="a")
    listed = keras.Model([first, second], first - 2 * second)
    x, y = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([x, y], listed({"b": x, "a": y}))
    inputs = inputs_of(model)
    traced = graph.trace(model)
    found = run(traced, inputs)[traced.outputs[0]]
    np.testing.assert_allclose(found, inputs[0] - 2 * inputs[1], rtol=1e-6)


def test_infer_specs_gives_the_shapes_for_other_sizes():
    x = keras.Input((None, None, 3))
    model = keras.Model(x, keras.layers.Conv2D(4, 3, strides=2)(keras.layers.Conv2D(5, 3)(x)))
    traced = graph.trace(model)
    specs = graph.infer_specs(traced, [(None, 11, 9, 3)])
    shapes = [specs[call.outputs[0]].shape for call in traced.calls]
    assert shapes == [(None, 9, 7, 5), (None, 4, 3, 4)]


class Subclass(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subclass(name="mine"), r"'mine': expected a Functional .* subclass Subclass"),
        (lambda: keras.Sequential([keras.layers.Dense(2)], name="s"), "'s': .* add a keras.Input"),
        (lambda: keras.layers.Dense(2), "expected a Keras model, got Dense"),
        (lambda: "model.keras", "expected a Keras model, got str"),
    ],
)
def test_what_has_no_graph_is_an_error(make, message):
    with pytest.raises(Error, match=message):
        graph.trace(make())
