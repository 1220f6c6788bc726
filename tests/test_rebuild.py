import collections
import functools
import json
import logging
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import (
    CONVS,
    NETWORKS,
    Holder,
    convolutions,
    difference,
    full_ranks,
    inputs_of,
    network,
    outputs_of,
)
from keras import layers, ops

import tfdwd
from tfdwd import factorize, graph, rebuild
from tfdwd.errors import Error

# A stack multiplies factors of about the kernel's size where the convolution multiplies once, in
# float32 (eps 1.2e-7): over some hundred additions the two differ by a few 1e-6 of the scale.
CLOSE = 1e-4


def full_rank(kernel):
    return factorize.svd(kernel, min(kernel.shape[1:]))


def as_bottleneck(kernel):
    """An exact bottleneck: one component per (channel, tap)."""
    c, q, n = kernel.shape
    reduce, taps = np.repeat(np.eye(c), q, axis=1), np.tile(np.eye(q), c)
    return factorize.Bottleneck(reduce, taps, kernel.reshape(c * q, n))


def as_channel(kernel):
    return factorize.Channel(kernel, np.eye(kernel.shape[2]))


STACKS = {"separable": full_rank, "bottleneck": as_bottleneck, "channel": as_channel}


def expansions_of(model, stack=full_rank):
    return {
        id(conv): rebuild.expand(
            conv,
            stack(rebuild.kernel_of(conv)),
            None if conv.bias is None else np.asarray(conv.bias),
        )
        for conv in convolutions(model)
    }


def fingerprint(model):
    """Everything of a model that a function with side effects could change."""
    operations = [op for m in (model, *nested(model)) for op in graph.functional(m).operations]
    return (
        [array.tobytes() for array in model.get_weights()],
        json.dumps(model.get_config(), default=str),
        [(op.name, len(op._inbound_nodes), len(op._outbound_nodes)) for op in operations],
        [(layer.name, layer.trainable) for layer in model._flatten_layers()],
        [variable.path for variable in model.variables],
    )


def input_names(model):
    return [(x.name, x._keras_history.operation.name) for x in model.inputs]


def called_names(model):
    """How often each name comes among what the model and its nested models call."""
    parts = [graph.functional(part) for part in (model, *nested(model))]
    return collections.Counter(op.name for part in parts for op in part.operations)


def nested(model):
    return [part for part in model._flatten_layers() if part is not model and graph.is_nested(part)]


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("case", CONVS)
def test_an_exact_stack_equals_the_convolution(case, stack):
    model = CONVS[case].model()
    student = rebuild.rebuild(model, expansions_of(model, STACKS[stack]))
    inputs = inputs_of(model)
    assert difference(outputs_of(student, inputs), outputs_of(model, inputs)) < CLOSE
    kept = student.get_layer("conv")
    assert kept.kernel_size == (1, 1)
    assert kept.activation is model.get_layer("conv").activation


@pytest.mark.parametrize("case", CONVS)
def test_decompose_at_full_rank_equals_the_original(case):
    model = CONVS[case].model()
    student = tfdwd.decompose(model, rank={"conv": CONVS[case].full_rank})
    inputs = inputs_of(model)
    assert len(student.layers) > len(model.layers)
    assert difference(outputs_of(student, inputs), outputs_of(model, inputs)) < CLOSE


@pytest.mark.parametrize("case", ["same", "more outputs than taps"])
def test_the_layers_of_a_stack_have_multiplier_one_and_compute_what_its_kernel_says(case):
    model = CONVS[case].model()
    conv = model.get_layer("conv")
    stack = factorize.svd(rebuild.kernel_of(conv), 2)
    expansion = rebuild.expand(conv, stack, np.arange(conv.filters))
    kinds = [type(layer).__name__ for layer in expansion.layers]
    assert kinds == ["DepthwiseConv2D", "DepthwiseConv2D", "Concatenate", "Conv2D"]
    names = [layer.name for layer in expansion.layers]
    assert names == ["conv_depthwise_1", "conv_depthwise_2", "conv_concat", "conv"]
    assert all(layer.depth_multiplier == 1 for layer in expansion.layers[:2])
    x = inputs_of(model)
    kernel = np.moveaxis(stack.kernel(), 1, 0).reshape(conv.kernel.shape)
    expected = keras.ops.conv(x, kernel.astype(np.float32), padding="same") + np.arange(
        conv.filters, dtype=np.float32
    )
    np.testing.assert_allclose(expansion(x), expected, atol=1e-4)


@pytest.mark.parametrize("strides", [(1, 2), (2, 1)])
def test_unequal_strides_make_grouped_layers_which_tensorflow_runs(strides):
    conv = layers.Conv2D(5, 3, strides=strides, kernel_regularizer="l2", name="conv")
    model = keras.Sequential([keras.Input((9, 8, 4)), conv])
    first, *_ = rebuild.expand(conv, factorize.svd(rebuild.kernel_of(conv), 1), None).layers
    assert isinstance(first, layers.Conv2D) and first.groups == 4
    assert first.kernel.shape == (3, 3, 1, 4)
    assert isinstance(first.kernel_regularizer, keras.regularizers.L2)
    assert first(inputs_of(model)).shape[1:3] == model.output_shape[1:3]


def test_kernel_of_is_channel_major():
    conv = layers.Conv2D(4, (2, 3))
    conv.build((None, 8, 8, 5))
    kernel = rebuild.kernel_of(conv)
    assert kernel.shape == (5, 6, 4) and kernel.dtype == np.float64
    assert kernel[3, 1 * 3 + 2, 1] == conv.kernel.numpy()[1, 2, 3, 1]


@functools.cache
def at_full_rank(name):
    """A network, which stays as it was, and its student."""
    model = network(name)
    before = fingerprint(model)
    student = tfdwd.decompose(model, rank=full_ranks(model))
    assert fingerprint(model) == before
    return model, student


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_at_full_rank(name):
    """Equal outputs, the same structure, nothing shared twice, and the original as it was."""
    model, student = at_full_rank(name)

    inputs = inputs_of(model)
    # In half precision (eps 1e-3) each layer of the stack rounds its output.
    tolerance = 1e-2 if name == "mixed precision" else CLOSE
    assert difference(outputs_of(student, inputs), outputs_of(model, inputs)) < tolerance

    assert not convolutions(student)
    for layer in student._flatten_layers():
        assert getattr(layer, "depth_multiplier", 1) == 1
    assert student.name == model.name
    assert input_names(student) == input_names(model)
    assert [x.dtype for x in student.outputs] == [x.dtype for x in model.outputs]
    if not isinstance(model, keras.Sequential):
        keras.tree.assert_same_structure(student.input, model.input)
        keras.tree.assert_same_structure(student.output, model.output)
    assert sorted(part.name for part in nested(student)) == sorted(p.name for p in nested(model))
    assert not called_names(model) - called_names(student)

    # Shared stays shared: exactly the kernels' numbers are exchanged for those of their stacks.
    change = 0
    for conv in convolutions(model):
        c, q, n = rebuild.kernel_of(conv).shape
        change += c * min(q, n) * (q + n) - c * q * n
    assert student.count_params() == model.count_params() + change


@pytest.mark.parametrize("name", NETWORKS)
def test_flatten_leaves_one_graph_with_the_same_outputs(name):
    model = network(name)
    before = fingerprint(model)
    flat = rebuild.flatten(model)
    assert fingerprint(model) == before
    assert not nested(flat)
    inputs = inputs_of(model)
    assert difference(outputs_of(flat, inputs), outputs_of(model, inputs)) < 1e-6
    assert flat.count_params() == model.count_params()
    assert input_names(flat) == input_names(model)
    assert len(flat.trainable_weights) == len(model.trainable_weights)


def test_flatten_after_decompose_and_again():
    model = network("nested twice")
    flat = rebuild.flatten(rebuild.flatten(tfdwd.decompose(model, rank=full_ranks(model))))
    inputs = inputs_of(model)
    assert difference(outputs_of(flat, inputs), outputs_of(model, inputs)) < CLOSE


def test_flatten_puts_the_models_name_before_a_name_that_is_taken():
    flat = rebuild.flatten(network("nested sequential"))
    names = [layer.name for layer in flat.layers]
    assert {"stem", "backbone_one", "one"} <= set(names)
    assert flat.get_layer("one").filters == 4  # the outer one keeps its name


def test_flatten_keeps_training_false_for_the_layers_of_a_nested_model():
    model = network("nested sequential")  # calls its backbone with training=False
    flat = rebuild.flatten(model)
    inputs = inputs_of(model, images=8)
    expected = np.asarray(model(inputs, training=True))
    np.testing.assert_allclose(flat(inputs, training=True), expected, atol=1e-5)
    statistics = model.get_layer("backbone").layers[1].moving_mean
    [norm] = [layer for layer in flat.layers if isinstance(layer, layers.BatchNormalization)]
    np.testing.assert_array_equal(norm.moving_mean, statistics)


def test_flags_regularisers_and_constraints():
    model = network("decorated")
    student = tfdwd.decompose(model, rank=full_ranks(model))
    backbone = student.get_layer("backbone")
    assert not backbone.trainable
    assert not any(layer.trainable for layer in backbone._flatten_layers())
    for name in ("frozen", "frozen_concat", "frozen_depthwise_1"):
        assert not student.get_layer(name).trainable
    assert student.get_layer("bounded").trainable
    holder = student.get_layer("holder")
    assert isinstance(holder, Holder)
    assert [holder.trainable, holder.first.trainable, holder.second.trainable] == [
        True,
        False,
        True,
    ]

    l2 = student.get_layer("regular")
    assert isinstance(l2.kernel_regularizer, keras.regularizers.L2)
    assert isinstance(l2.bias_regularizer, keras.regularizers.L1)
    taps = student.get_layer("regular_depthwise_1")
    assert isinstance(taps.depthwise_regularizer, keras.regularizers.L2)
    bounded = student.get_layer("bounded")
    assert bounded.kernel_constraint is None
    assert isinstance(bounded.bias_constraint, keras.constraints.NonNeg)


def test_a_frozen_model_stays_frozen_and_its_layers_keep_their_flags():
    model = network("functional")
    model.trainable = False
    model.get_layer("conv1").trainable = True
    copy = rebuild.rebuild(model, {})
    assert not copy.trainable
    assert [layer.trainable for layer in copy.layers] == [layer.trainable for layer in model.layers]
    assert copy.get_layer("conv1").trainable


def test_dtype_policies_are_kept():
    model = network("mixed precision")
    student = tfdwd.decompose(model, rank=full_ranks(model))
    for name in ("first", "first_concat", "first_depthwise_1", "second"):
        assert student.get_layer(name).dtype_policy.name == "mixed_float16"
    assert student.get_layer("first").kernel.dtype == "float32"


def test_a_shared_layer_stays_shared():
    student = tfdwd.decompose(network("siamese"), include="*")
    assert len(student.get_layer("shared_depthwise")._inbound_nodes) == 2
    before = outputs_of(student, inputs_of(student))[0]
    left, right = inputs_of(student)
    np.testing.assert_allclose(outputs_of(student, [right, left])[0], -before, atol=1e-6)


def test_names_that_are_taken_get_a_mark():
    for rank in (1, 2):
        student = tfdwd.decompose(network("names taken"), rank={"a": rank})
        names = [layer.name for layer in student.layers]
        assert len(set(names)) == len(names)
        assert isinstance(student.get_layer("a_depthwise"), layers.DepthwiseConv2D)
        np.testing.assert_array_equal(
            student.get_layer("a_depthwise").get_weights()[0],
            network("names taken").get_layer("a_depthwise").get_weights()[0],
        )


def test_an_input_can_be_an_output_and_an_output_can_come_twice():
    x = keras.Input((8, 8, 4))
    y = layers.Conv2D(6, 3, name="conv")(x)
    student = tfdwd.decompose(keras.Model(x, [x, y, y]), rank={"conv": 6})
    inputs = np.ones((1, 8, 8, 4), np.float32)
    first, second, third = outputs_of(student, inputs)
    np.testing.assert_array_equal(first, inputs)
    np.testing.assert_array_equal(second, third)


def test_kinds_of_inputs_are_kept():
    x = keras.Input((8,), sparse=True, name="words", dtype="float64")
    copy = rebuild.rebuild(keras.Model(x, layers.Dense(2)(x)), {})
    assert copy.inputs[0].sparse and copy.inputs[0].dtype == "float64"


class Stubborn(layers.Layer):
    def call(self, x):
        return x

    def get_config(self):
        raise NotImplementedError("no config")


def test_a_layer_that_cannot_be_copied_is_named():
    model = keras.Sequential([keras.Input((4,)), Stubborn(name="mule")])
    with pytest.raises(Error, match=r"'mule' \(Stubborn\): .* failed: no config"):
        rebuild.rebuild(model, {})


# ---------------------------------------------------------------------- copies by object

FACTOR = 3.0


def bent(x):
    return ops.relu(x) - 0.1 * ops.relu(-x)


class Ridge(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return 1e-3 * ops.sum(ops.square(weight))

    def get_config(self):
        return {}


class Inner(layers.Layer):
    """A user's layer, not registered, with a layer inside."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def compute_output_shape(self, shape):
        return self.dense.compute_output_shape(shape)


class Forgetful(layers.Layer):
    """Its configuration lacks what it was made with."""

    def __init__(self, factor=2.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return super().get_config()


class Noise(layers.Layer):
    """Random at inference, too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


def in_row(*parts, **options):
    x = image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="conv", **options)(x)
    for part in parts:
        x = part(x)
    return keras.Model(image, x)


def run_once(model):
    model(inputs_of(model))
    return model


def with_lora():
    model = in_row(layers.Dense(3, name="dense"), layers.Conv2D(3, 1))
    for layer in model.layers[1:]:
        layer.enable_lora(2, lora_alpha=3)
        layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=layer.lora_kernel_b.shape))
    return model


def in_int8():
    model = in_row(layers.Dense(3))
    model.layers[-1].quantize("int8")
    return model


def adapted_bins():
    bins = layers.Discretization(num_bins=4)
    bins.adapt(np.linspace(-2, 2, 100))
    return in_row(lambda x: bins(x))


def words():
    word, image = keras.Input((1,), dtype="string"), keras.Input((8, 8, 4))
    lookup = layers.StringLookup(name="lookup")
    lookup.adapt(["a", "b 1", "a"])
    maps = layers.Conv2D(6, 3, name="conv")(image)
    return keras.Model([word, image], [layers.Embedding(5, 2)(lookup(word)), maps])


prelu = functools.partial(layers.PReLU, "random_normal", shared_axes=[1, 2])
BY_OBJECT = {
    "PReLU": lambda: in_row(activation=prelu()),
    "PReLU that ran": lambda: run_once(in_row(layers.Conv2D(3, 1, activation=prelu()))),
    "PReLU of a conv that ran": lambda: run_once(in_row(activation=prelu())),
    "PReLU in half precision": lambda: run_once(in_row(activation=prelu(), dtype="mixed_float16")),
    "layers as activations": lambda: in_row(
        layers.Dense(3, layers.Softmax()), activation=layers.LeakyReLU(0.3)
    ),
    "LoRA": with_lora,
    "int8": in_int8,
    "TensorFlow's function": lambda: in_row(activation=tf.nn.swish),
    "own function": lambda: in_row(layers.Dense(3, activation=bent), activation=bent),
    "own lambda": lambda: in_row(
        layers.Dense(3, activation=lambda x: FACTOR * x), activation=lambda x: FACTOR * x
    ),
    "own regulariser": lambda: in_row(kernel_regularizer=Ridge(), activity_regularizer=Ridge()),
    "own initialiser": lambda: in_row(
        kernel_initializer=lambda shape, dtype: ops.ones(shape, dtype)
    ),
    "Lambda with names": lambda: in_row(
        layers.Lambda(lambda x: tf.nn.space_to_depth(FACTOR * x, 2))
    ),
    "Lambda with arguments": lambda: in_row(
        layers.Lambda(lambda x, by: by * x, arguments={"by": 2.0})
    ),
    "Lambda in a wrapper": lambda: in_row(
        layers.TimeDistributed(layers.Lambda(lambda x: FACTOR * x))
    ),
    "own layer": lambda: in_row(Inner(3)),
    "own layer in a wrapper": lambda: in_row(layers.TimeDistributed(Inner(3))),
    "recurrent": lambda: in_row(layers.Reshape((8, 48)), layers.Bidirectional(layers.LSTM(3))),
    "bins": adapted_bins,
    "words": words,
    "spectral": lambda: in_row(layers.SpectralNormalization(layers.Conv2D(3, 1))),
    "augmentation": lambda: in_row(
        layers.RandomFlip(), layers.RandomCrop(6, 6), layers.GaussianNoise(1)
    ),
}


def words_or_images(model):
    if len(model.inputs) == 1:
        return inputs_of(model)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    return [tf.constant([["a"], ["b 1"]]), tf.constant(images)]


@pytest.mark.parametrize("name", BY_OBJECT)
def test_copies_by_object(name):
    """What a configuration alone would lose: decomposed at full rank nothing changes."""
    keras.utils.set_random_seed(0)
    model = BY_OBJECT[name]()
    student = tfdwd.decompose(model, rank={"conv": 6})
    inputs = words_or_images(model)
    before = outputs_of(model, inputs)
    half = name == "PReLU in half precision"
    assert difference(outputs_of(student, inputs), before) < (1e-2 if half else CLOSE)
    flat = rebuild.flatten(model)
    assert difference(outputs_of(flat, inputs), before) < 1e-6
    for layer in flat._flatten_layers():  # weights of its own
        for weight in layer.trainable_weights:
            weight.assign(ops.zeros_like(weight))
    np.testing.assert_array_equal(outputs_of(model, inputs)[-1], before[-1])


def test_a_copied_activation_loads_with_its_weights(tmp_path):
    model = run_once(in_row(activation=prelu()))
    student = tfdwd.decompose(model, rank={"conv": 2})
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    inputs = inputs_of(model)
    assert difference(outputs_of(loaded, inputs), outputs_of(student, inputs)) < 1e-6
    alpha = model.get_layer("conv").activation.alpha
    np.testing.assert_array_equal(loaded.get_layer("conv").activation.alpha, alpha)


def test_a_lora_is_merged_into_the_stack():
    student = tfdwd.decompose(with_lora(), rank={"conv": 6})
    assert not student.get_layer("conv").lora_enabled
    assert student.get_layer("conv").kernel.trainable
    assert student.get_layer("dense").lora_enabled and student.get_layer("dense").lora_alpha == 3


def test_what_the_copy_computes_otherwise_is_refused_before_any_work():
    def images():
        yield from ()
        raise AssertionError("work has begun")

    model = in_row(Forgetful(3.0, name="forgetful"))
    with pytest.raises(Error, match=r"'forgetful' \(Forgetful\): .*computes something else"):
        tfdwd.decompose(model, images())
    rebuild.rebuild(in_row(Forgetful(2.0)), {})  # nothing is lost here


def test_a_layer_that_is_random_at_inference_is_copied():
    model = in_row(Noise())
    before = [np.asarray(variable) for variable in model.variables]
    assert rebuild.rebuild(model, {}).layers[-1].seeds is not model.layers[-1].seeds
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_stateful_layer_is_left_as_it_was():
    x = image = keras.Input(batch_shape=(2, 5, 4))
    model = keras.Model(image, layers.LSTM(3, stateful=True)(x))
    model(np.ones((2, 5, 4)))
    before = [np.asarray(variable) for variable in model.variables]
    rebuild.rebuild(model, {})
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_autocast_is_kept():
    x = image = keras.Input((4,))
    model = keras.Model(image, layers.Dense(2, autocast=False, name="dense")(x))
    assert not rebuild.rebuild(model, {}).get_layer("dense").autocast


def test_a_model_that_runs_on_no_random_input_is_copied_with_a_warning(caplog):
    class Strict(layers.Layer):
        def call(self, x):
            if not isinstance(x, keras.KerasTensor):
                raise ValueError("not you")
            return x

        def compute_output_shape(self, shape):
            return shape

    x = image = keras.Input((4,))
    with caplog.at_level(logging.WARNING, "absl"):
        rebuild.rebuild(keras.Model(image, Strict()(x), name="strict"), {})
    assert "model 'strict' runs on none of the random inputs" in caplog.text


def test_students_load_where_tfdwd_is_not(tmp_path):
    plain = [name for name in NETWORKS if name != "custom layer" and name != "decorated"]
    for index, name in enumerate(plain):
        _, student = at_full_rank(name)
        student.save(tmp_path / f"{index}.keras")
        inputs = keras.tree.flatten(inputs_of(student))
        outputs = keras.tree.flatten(student(inputs_of(student)))
        np.savez(tmp_path / f"{index}.npz", *inputs, *outputs)
    program = f"""
import sys
sys.modules["tfdwd"] = None  # importing it raises
import keras, numpy as np
for index in range({len(plain)}):
    model = keras.models.load_model(f"{{index}}.keras", safe_mode=True)
    with np.load(f"{{index}}.npz") as content:
        arrays = [content[name] for name in content.files]
    count = len(model.inputs)
    inputs = keras.tree.pack_sequence_as(model.input, arrays[:count])
    found = keras.tree.flatten(model(inputs))
    for a, b in zip(found, arrays[count:], strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=2e-3)
print("loaded", index + 1)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stdout == f"loaded {len(plain)}\n", result.stderr


def test_models_of_keras_2(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    x = image = tf_keras.Input((8, 8, 3), name="image")
    x = tf_keras.layers.Conv2D(6, 3, padding="same", name="one")(x)
    x = tf_keras.layers.BatchNormalization(name="norm")(x)
    x = tf_keras.layers.Add(name="add")([x, tf_keras.layers.Conv2D(6, 1, name="side")(image)])
    x = tf_keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="two")(x)
    model = tf_keras.Model(image, tf_keras.layers.Dense(3, name="head")(x))
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(tmp_path / "model.h5", include_optimizer=False)
    loaded = keras.models.load_model(tmp_path / "model.h5", compile=False)
    student = tfdwd.decompose(loaded, rank={"one": 6, "two": 8})
    inputs = inputs_of(loaded)
    expected = [model(inputs).numpy()]
    assert difference(outputs_of(student, inputs), expected) < CLOSE


APPLICATIONS = """
    ConvNeXtTiny DenseNet121 DenseNet169 DenseNet201 EfficientNetB0 EfficientNetB1 EfficientNetB2
    EfficientNetB3 EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3
    EfficientNetV2S InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 MobileNetV3Large
    MobileNetV3Small NASNetMobile ResNet50 ResNet101 ResNet152 ResNet50V2 ResNet101V2 ResNet152V2
    VGG16 VGG19 Xception EfficientNetB4 ConvNeXtSmall
""".split()
SMALLEST = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_keras_applications_at_full_rank(name):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    size = SMALLEST.get(name, 32)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    student = tfdwd.decompose(model, rank=full_ranks(model)) if full_ranks(model) else None
    if student is None:
        student = tfdwd.decompose(model)
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    assert difference(outputs_of(student, images), outputs_of(model, images)) < CLOSE


def test_average_pools_over_whole_maps_become_global_ones():
    image = keras.Input((6, 4, 3))
    x = keras.layers.Conv2D(5, 1, name="conv")(image)
    whole = keras.layers.AveragePooling2D((6, 4), name="whole")
    part = keras.layers.AveragePooling2D((3, 4), name="part")
    twice = keras.layers.AveragePooling2D((6, 4), strides=1, padding="same", name="same")
    outputs = [whole(x), part(x), twice(x)]
    model = keras.Model(image, outputs)
    pooled = rebuild.with_global_pools(model)
    kinds = {layer.name: type(layer).__name__ for layer in pooled.layers}
    assert kinds["whole"] == "GlobalAveragePooling2D"
    assert kinds["part"] == kinds["same"] == "AveragePooling2D"
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    for expected, found in zip(model(images), pooled(images), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    # The same layer, shared with a smaller map, must stay.
    small = keras.Input((6, 8, 3))
    model = keras.Model([image, small], [whole(x), whole(keras.layers.Conv2D(5, 1)(small))])
    assert rebuild.with_global_pools(model) is model
