"""Layers that hold convolutions: opened exactly, or closed with a reason."""

import keras
import numpy as np
import pytest
from cases import (
    HIDING,
    Block,
    Twice,
    convolutions,
    difference,
    full_ranks,
    inputs_of,
    network,
    outputs_of,
    randomised,
)
from keras import layers

import tfdwd
from tfdwd import costs, graph, opening

# A stack multiplies factors where the convolution multiplies once, in float32.
CLOSE = 1e-4


def kinds_inside(model):
    return {type(layer) for layer in model._flatten_layers()}


def nodes_of(model):
    return [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in model._flatten_layers()]


def reasons(model):
    _, report = tfdwd.decompose(model, return_report=True)
    return {layer.name: layer.reason for layer in report.layers}


@pytest.mark.parametrize("name", HIDING)
def test_full_rank_is_exact_and_the_student_is_of_plain_layers(name, tmp_path):
    model = network(name)
    inputs = inputs_of(model)
    expected, before = outputs_of(model, inputs), nodes_of(model)
    ranks = full_ranks(model)
    assert len(ranks) == len(convolutions(model))
    student, report = tfdwd.decompose(model, rank=ranks, return_report=True)
    assert all(layer.replaced for layer in report.layers)
    assert difference(outputs_of(student, inputs), expected) < CLOSE
    assert [x.shape for x in student.inputs] == [x.shape for x in model.inputs]
    assert all(kind.__module__.startswith("keras.") for kind in kinds_inside(student))
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(outputs_of(loaded, inputs)[0], outputs_of(student, inputs)[0])
    assert nodes_of(model) == before
    np.testing.assert_array_equal(outputs_of(model, inputs)[0], expected[0])


@pytest.mark.parametrize("name", HIDING)
def test_full_rank_is_exact_with_data(name):
    model = network(name)
    data = inputs_of(model, 16)
    student, report = tfdwd.decompose(
        model, data, rank=full_ranks(model), method="sequential", return_report=True
    )
    assert all(layer.error < 1e-3 for layer in report.layers)
    # Fitted to the responses in float32: not the kernels themselves.
    assert difference(outputs_of(student, data), outputs_of(model, data)) < 1e-2


def test_paths_say_where_a_convolution_is():
    for name, expected in (
        ("own block", ["stem", "block/conv", "block/conv_1", "last"]),
        ("time steps of a model", ["each/one", "each/two"]),
        ("time steps of a convolution", ["each/conv"]),
        ("spectral normalization", ["spectral/conv"]),
    ):
        _, report = tfdwd.decompose(network(name), return_report=True)
        assert [layer.name for layer in report.layers] == expected


def test_macs_are_of_all_time_steps_and_the_report_adds_up():
    model = network("time steps of a model")
    student, report = tfdwd.decompose(model, inputs_of(model, 8), return_report=True)
    assert report.layers[0].macs_before == 3 * 64 * 6 * 9 * 6
    assert report.layers[0].macs_after == 3 * 64 * 6 * (9 + 6)
    assert report.macs_before - report.macs_after == sum(
        x.macs_before - x.macs_after for x in report.layers
    )
    assert report.macs_after == costs.count(student).macs


def test_time_steps_made_images_by_a_reshape_count_too():
    x = video = keras.Input((3, 8, 8, 6))
    x = keras.ops.reshape(x, (-1, 8, 8, 6))
    x = layers.Conv2D(6, 3, padding="same")(x)
    model = keras.Model(video, keras.ops.reshape(x, (-1, 3, 8, 8, 6)))
    _, report = tfdwd.decompose(randomised(model), inputs_of(model, 8), return_report=True)
    assert report.layers[0].macs_before == 3 * 64 * 6 * 9 * 6


def test_a_student_behaves_in_training_as_the_original():
    """Batch norms follow the batch and dropouts drop."""
    model = network("own block")
    student = tfdwd.decompose(model, rank=full_ranks(model))
    image = inputs_of(model, 8)
    block = model.get_layer("block")
    inside = student.get_layer("block")
    before = block.norm.moving_mean.numpy()
    first, second = (student(image, training=True) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    model(image, training=True)
    model(image, training=True)
    [norm] = [x for x in inside.layers if isinstance(x, layers.BatchNormalization)]
    assert np.abs(block.norm.moving_mean.numpy() - before).max() > 1e-3
    np.testing.assert_allclose(norm.moving_mean, block.norm.moving_mean, atol=1e-4)


def test_a_layer_in_which_nothing_is_replaced_stays():
    model = network("own block")
    student = tfdwd.decompose(model, include="stem")
    assert type(student.get_layer("block")) is Block
    inputs = inputs_of(model)
    again = tfdwd.decompose(model, rank={"stem": 6})
    assert difference(outputs_of(again, inputs), outputs_of(model, inputs)) < CLOSE


def test_frozen_layers_inside_stay_frozen():
    model = network("own block")
    model.get_layer("block").convs[0].trainable = False
    student = tfdwd.decompose(model, include="block/*")
    flags = {x.name: x.trainable for x in student.get_layer("block").layers}
    assert not flags["conv"] and not flags["conv_depthwise"]
    assert flags["conv_1"] and flags["conv_1_depthwise"]


# ---------------------------------------------------------------------- what stays closed


class Base(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(6, 3, padding="same", name="conv")
        self.slim = layers.Conv2D(6, 1, name="slim")

    def build(self, shape):
        self.conv.build(shape)
        self.slim.build(shape)


@keras.saving.register_keras_serializable("tests")
class Gated(Base):
    def build(self, shape):
        super().build(shape)
        self.gate = self.add_weight(shape=(6,), name="gate")

    def call(self, x):
        return self.slim(self.conv(x)) * self.gate


@keras.saving.register_keras_serializable("tests")
class OfTensorFlow(Base):
    def call(self, x):
        import tensorflow as tf

        return self.slim(tf.nn.relu(self.conv(x)))


@keras.saving.register_keras_serializable("tests")
class OtherwiseInTraining(Base):
    def call(self, x, training=None):
        return self.slim(self.conv(x)) if training else self.conv(x)


@keras.saving.register_keras_serializable("tests")
class Frozen(Base):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        super().build(shape)
        self.norm.build(shape)

    def call(self, x):
        return self.norm(self.slim(self.conv(x)), training=False)


@keras.saving.register_keras_serializable("tests")
class Lying(Base):
    def call(self, x):
        return self.conv(x) if isinstance(x, keras.KerasTensor) else self.slim(x)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (
            Gated(name="x"),
            "whose call cannot be traced: it computes with a trainable weight of its own, 'gate'",
        ),
        (OfTensorFlow(name="x"), "whose call cannot be traced: A KerasTensor cannot be used"),
        (OtherwiseInTraining(name="x"), "whose call does something else in training"),
        (Frozen(name="x"), "whose call cannot be traced: it fixes the mode of training of 'norm'"),
        (Lying(name="x"), "whose call gives other outputs when it is traced"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_opened_is_listed_with_the_reason(layer, reason):
    model = keras.Sequential([keras.Input((8, 8, 6)), layer])
    found = reasons(randomised(model))
    assert list(found) == ["x/conv", "x/slim"]
    assert found["x/conv"].startswith(f"inside the layer 'x' ({type(layer).__name__}), {reason}")
    assert found["x/slim"] == "1x1 already"
    inputs = inputs_of(model)
    student = tfdwd.decompose(model, inputs)
    assert difference(outputs_of(student, inputs), outputs_of(model, inputs)) < 1e-6


def test_recurrent_convolutions_are_listed():
    both = layers.Bidirectional(
        layers.ConvLSTM2D(4, 3, name="lstm", return_sequences=True), name="both"
    )
    own = layers.ConvLSTM2D(4, 3, name="own")
    found = reasons(keras.Sequential([keras.Input((3, 8, 8, 6)), both, own]))
    assert list(found) == ["both/forward_lstm", "both/backward_lstm", "own"]
    assert set(found.values()) == {"a ConvLSTM2D, not a plain Conv2D"}


def test_a_convolution_as_an_operation_is_listed():
    x = keras.Input((8, 8, 6))
    kernel = np.ones((3, 3, 6, 4), np.float32)
    model = keras.Model(x, keras.ops.conv(x, kernel))
    [reason] = reasons(model).values()
    assert reason.startswith("an operation with a kernel of its own, not a layer")


def test_a_convolution_that_is_never_called_is_listed():
    class Idle(Base):
        def call(self, x):
            return self.slim(x)

    found = reasons(keras.Sequential([keras.Input((8, 8, 6)), Idle(name="x")]))
    assert found == {"x/slim": "1x1 already", "x/conv": "its layer never calls it"}


def test_a_layer_called_at_several_sizes_is_opened_for_all():
    x = image = keras.Input((8, 8, 6))
    block = Block(name="block")
    small = block(layers.MaxPooling2D()(x))
    model = keras.Model(image, [block(x), small])
    model = randomised(model)
    inputs = inputs_of(model)
    student, report = tfdwd.decompose(model, rank=full_ranks(model), return_report=True)
    assert [layer.replaced for layer in report.layers] == [True, True]
    assert report.layers[0].macs_before == (64 + 16) * 6 * 9 * 6
    assert difference(outputs_of(student, inputs), outputs_of(model, inputs)) < CLOSE


@keras.saving.register_keras_serializable("tests")
class Resized(Base):
    def call(self, x):
        return layers.Resizing(x.shape[1], x.shape[2])(self.conv(x[:, ::2]))


def test_a_layer_that_depends_on_the_size_stays_closed_where_it_has_several():
    x = image = keras.Input((8, 8, 6))
    layer = Resized(name="x")
    found = reasons(keras.Model(image, [layer(x), layer(layers.MaxPooling2D()(x))]))
    assert "x" in found["x/conv"] and found["x/conv"].startswith("inside the layer 'x' (Resized)")
    alone = keras.Model(image, layer(x))
    assert reasons(alone)["x/conv"] == ""


def test_a_layer_called_in_several_ways_stays_closed():
    x, twice = keras.Input((8, 8, 6)), Twice(layers.Conv2D(5, 3, name="conv"), name="twice")
    sums = [twice(x, other=x, scale=scale)["sum"] for scale in (1.0, 2.0)]
    found = reasons(keras.Model(x, sums))
    assert found["twice/conv"].endswith("which does not compute the same in all of its calls")


def test_a_block_that_is_called_in_one_mode_of_training_stays_so():
    x = image = keras.Input((8, 8, 6))
    model = randomised(keras.Model(image, Block(name="block")(x, training=False)))
    student = tfdwd.decompose(model, include="*")
    [node] = student.get_layer("block")._inbound_nodes
    assert node.arguments.kwargs["training"] is False
    inputs = inputs_of(model)
    np.testing.assert_array_equal(student(inputs), student(inputs))


def test_a_layer_called_with_a_mask_stays_closed():
    x = keras.Input((3, 8, 8, 6))
    masked = layers.Masking()(layers.Reshape((3, -1))(x))
    each = layers.TimeDistributed(layers.Conv2D(4, 3, name="conv"), name="each")
    y = each(x, mask=keras.ops.any(masked != 0, axis=-1))
    found = reasons(keras.Model(x, y))
    assert found["each/conv"] == (
        "inside the layer 'each' (TimeDistributed), which is called with a mask"
    )


def test_a_layer_that_several_models_share_stays_closed():
    """Keras 3.15 does not load a model in which a nested model is shared so."""
    image, x = keras.Input((8, 8, 6)), keras.Input((8, 8, 6))
    block = Block(name="block")
    inner = keras.Model(x, layers.ReLU()(block(x)), name="inner")
    found = reasons(keras.Model(image, layers.Add()([inner(image), block(image)])))
    assert found["inner/block/conv"] == (
        "inside the layer 'inner/block' (Block), which several models share"
    )


def test_a_model_with_a_call_of_its_own_is_not_taken_for_its_graph():
    class Scaled(keras.Model):
        def call(self, x):
            return 3 * super().call(x)

    x = image = keras.Input((8, 8, 6))
    inner = keras.Input((8, 8, 6))
    scaled = Scaled(inner, layers.Conv2D(6, 3, padding="same", name="conv")(inner), name="scaled")
    model = randomised(keras.Model(image, layers.ReLU()(scaled(x))))
    student, report = tfdwd.decompose(model, rank={"conv": 6}, return_report=True)
    assert report.layers[0].replaced
    inputs = inputs_of(model)
    assert difference(outputs_of(student, inputs), outputs_of(model, inputs)) < CLOSE


def test_opening_finds_the_same_each_time():
    model = network("own block, shared")
    first, again = (graph.trace(model) for _ in range(2))
    assert [call.path for call in first.calls] == [call.path for call in again.calls]
    assert all(isinstance(x, opening.Inside) for x in first.openings.values())
