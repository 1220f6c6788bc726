import json
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdwd
from tfdwd import bridge
from tfdwd.batches import pack
from tfdwd.errors import Error

tf_keras = pytest.importorskip("tf_keras")
KL = tf_keras.layers


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(4, *shape)).astype(np.float32)


def sequential():
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((12, 12, 3), name="image"),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, name="taps"),
            layers.SeparableConv2D(5, 3),
            layers.Conv2DTranspose(3, 3, strides=2, use_bias=False),
            layers.Conv2D(6, 3, groups=3, name="grouped"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )


def functional():
    """Nested models: one Sequential used twice, one Functional, one that gives the output."""
    layers = tf_keras.layers
    shared = tf_keras.Sequential(
        [layers.InputLayer((8, 8, 3)), layers.Conv2D(3, 3, padding="same")]
    )
    part = tf_keras.Input((8, 8, 3))
    inner = tf_keras.Model(part, layers.DepthwiseConv2D(3)(part), name="inner")
    head = tf_keras.Sequential([layers.InputLayer((6, 6, 3)), layers.GlobalMaxPooling2D()])
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Concatenate()([shared(image), shared(layers.ReLU()(image))])
    return tf_keras.Model(image, head(inner(layers.Conv2D(3, 1)(x))))


def ends_in_functional():
    image, part = tf_keras.Input((8, 8, 3)), tf_keras.Input((8, 8, 3))
    inner = tf_keras.Model(part, tf_keras.layers.Conv2D(3, 3)(part))
    return tf_keras.Model(image, inner(tf_keras.layers.ReLU()(image)))


@pytest.mark.parametrize("make", [sequential, functional, ends_in_functional])
def test_a_tf_keras_model_becomes_a_keras_3_model_with_the_same_outputs(make):
    tf_keras.utils.set_random_seed(0)
    model = make()
    x = images(*model.input_shape[1:])
    converted = bridge.to_keras3(model)
    assert isinstance(converted, keras.Model)
    expected = model(x).numpy()
    found = converted(pack(converted, [x]))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    # The layers are Keras' own, so that the model loads anywhere.
    for layer in converted._flatten_layers(include_self=False):
        assert type(layer).__module__.startswith("keras.")


def test_several_inputs_and_outputs_keep_their_names():
    first, second = tf_keras.Input((4,), name="b"), tf_keras.Input((4,), name="a")
    outputs = {"o": tf_keras.layers.Dense(2)(first), "p": tf_keras.layers.Dense(1)(second)}
    model = tf_keras.Model({"b": first, "a": second}, outputs)
    given = {"b": images(4), "a": images(4, seed=1)}
    found = bridge.to_keras3(model)(given)
    for name, expected in model(given).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_decompose_takes_a_tf_keras_model_and_leaves_it_as_it_was():
    model = sequential()
    before = [array.copy() for array in model.get_weights()]
    student = tfdwd.decompose(model, rank={"conv": 4})
    x = images(12, 12, 3)
    np.testing.assert_allclose(student(x), model(x), atol=1e-4)
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_keras_3_model_passes_through(classifier):
    assert bridge.to_keras3(classifier) is classifier


@pytest.mark.parametrize(
    "thing", [3, "model.keras", keras.layers.Dense, np.zeros(3), tf_keras.layers.Dense(2)]
)
def test_what_is_no_model_is_an_error(thing):
    with pytest.raises(Error, match=r"expected a Keras model, got .*keras\.models\.load_model"):
        bridge.to_keras3(thing)


# ---------------------------------------------------------------------- layer by layer


def built(*parts, shape=(8, 8, 4)):
    """A Functional model of layers and functions in a row."""
    x = image = tf_keras.Input(shape)
    for part in parts:
        x = part(x)
    return tf_keras.Model(image, x)


def conv(**options):
    return KL.Conv2D(8, 3, padding="same", **options)


def base(frozen=()):
    model = built(KL.Conv2D(8, 3, name="conv"), KL.BatchNormalization(name="norm"))
    for name in frozen:
        model.get_layer(name).trainable = False
    return model


def transfer():
    """Weights in the order of an HDF5 file: those that train first, of all layers."""
    backbone = base()
    backbone.trainable = False
    model = tf_keras.Sequential([backbone, KL.GlobalAveragePooling2D(), KL.Dense(3)])
    model.build((None, 8, 8, 4))
    return model


def attention():
    query = tf_keras.Input((6, 4))
    y, scores = KL.MultiHeadAttention(2, 4)(
        query, query, return_attention_scores=True, use_causal_mask=True
    )
    return tf_keras.Model(query, [y, scores, KL.Attention(use_scale=True)([query, y])])


def states():
    x = tf_keras.Input((6, 4))
    _, h, c = KL.LSTM(3, return_state=True)(x)
    return tf_keras.Model(x, KL.LSTM(3)(x, initial_state=[h, c]))


def words():
    return built(KL.Embedding(7, 4, mask_zero=True, input_length=6), KL.LSTM(3), shape=(6,))


def gated():
    x = image = tf_keras.Input((8, 8, 4))
    x = conv()(x)
    gate = KL.Conv2D(8, 1, activation="hard_sigmoid")(tf.reduce_mean(x, [1, 2], keepdims=True))
    return tf_keras.Model(image, x * gate)


def pyramid():
    x = image = tf_keras.Input((None, None, 4))
    small = KL.MaxPooling2D(2)(x)
    return tf_keras.Model(image, KL.Concatenate()([x, KL.UpSampling2D(2)(small)]))


def as_large_as():
    image = tf_keras.Input((8, 8, 4))
    small = KL.MaxPooling2D(2)(image)
    return tf_keras.Model(image, tf.image.resize(small, tf.shape(image)[1:3]) - image)


def as_large_as_open():
    image = tf_keras.Input((None, None, 4))
    return tf_keras.Model(image, tf.image.resize(image[:, ::2], tf.shape(image)[1:3]))


def rows(x):
    return tf.reshape(tf.reshape(x, (tf.shape(x)[0], 64, -1)), (tf.shape(x)[0], 256))


def shuffled(x):
    x = tf.transpose(tf.reshape(x, (-1, 8, 8, 2, 2)), (0, 1, 2, 4, 3))
    return tf.reshape(x, (-1, 8, 8, 4))


def pieces(x):
    first, second = tf.split(x, 2, -1)
    return tf.concat([first, tf.pad(second[:, 1:], [[0, 0], [1, 0], [0, 0], [0, 0]])], -1)


def adapted():
    norm = KL.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3, 2, (50, 8, 8, 4)))
    return built(norm, conv())


def in_row(*layers, shape=(6, 8)):
    return built(*layers, shape=shape)


SAME = {
    "hard sigmoid": lambda: built(conv(activation="hard_sigmoid"), KL.Activation("hard_sigmoid")),
    "softmax over two axes": lambda: built(conv(), KL.Softmax(axis=[1, 2]), KL.Softmax(axis=1)),
    "activations": lambda: built(
        *(conv(activation=name) for name in ("elu", "selu", "gelu", "swish", "softplus", "mish"))
    ),
    "activations of TensorFlow": lambda: built(
        conv(activation=tf.nn.swish), conv(activation=tf.nn.leaky_relu),
        conv(activation=tf.nn.relu6), KL.Activation(tf.nn.gelu), KL.Activation(tf.nn.elu),
    ),
    "rectifiers": lambda: built(
        KL.LeakyReLU(), KL.ELU(0.3), KL.ThresholdedReLU(0.7), KL.ReLU(6, 0.1, 0.2), KL.PReLU("ones")
    ),
    "activation with weights": lambda: built(conv(activation=KL.PReLU("ones", shared_axes=[1, 2]))),
    "transfer": transfer,
    "partly frozen": lambda: built(base(["norm"]), KL.Dense(2)),
    "dropouts": lambda: built(
        KL.SpatialDropout2D(0.2), KL.Dropout(0.1), KL.GaussianNoise(1), KL.AlphaDropout(0.1)
    ),
    "random": lambda: built(
        KL.RandomFlip(), KL.RandomRotation(0.1), KL.RandomZoom(0.1), KL.RandomTranslation(0.1, 0.1),
        KL.RandomContrast(0.1), KL.RandomCrop(6, 5), KL.CenterCrop(4, 4),
    ),
    "norms": lambda: built(
        KL.LayerNormalization(axis=[1, 2]), KL.LayerNormalization(), KL.GroupNormalization(2),
        KL.UnitNormalization(), KL.BatchNormalization(renorm=True),
    ),
    "adapted": adapted,
    "sizes": lambda: built(
        KL.Resizing(12, 10), KL.Rescaling(0.5, 0.1), KL.Resizing(8, 8, "nearest", True),
        KL.UpSampling2D((1, 2), interpolation="bilinear"), KL.ZeroPadding2D(((1, 0), (2, 1))),
        KL.Cropping2D(1),
    ),
    "convolutions": lambda: built(
        conv(dilation_rate=2), KL.DepthwiseConv2D(3, depth_multiplier=2, activation="relu"),
        KL.SeparableConv2D(6, 3, strides=2), KL.Conv2DTranspose(4, 3, strides=2, padding="same"),
        KL.Conv2DTranspose(4, 4, strides=3, output_padding=1), KL.Conv2D(8, 3, groups=4),
    ),
    "recurrent": lambda: in_row(
        KL.LSTM(3, return_sequences=True), KL.GRU(3, return_sequences=True),
        KL.SimpleRNN(3, return_sequences=True), KL.RNN([KL.LSTMCell(3), KL.GRUCell(4)]),
    ),
    "recurrent of old": lambda: in_row(
        KL.LSTM(3, recurrent_activation="hard_sigmoid", return_sequences=True),
        KL.GRU(3, recurrent_activation="hard_sigmoid", reset_after=False, return_sequences=True),
        KL.Bidirectional(KL.GRU(3, recurrent_activation="hard_sigmoid")),
    ),
    "recurrent convolutions": lambda: built(
        KL.Reshape((2, 4, 8, 4)), KL.ConvLSTM2D(3, 3, padding="same")
    ),
    "states": states,
    "words": words,
    "attention": attention,
    "wrapped": lambda: built(KL.TimeDistributed(base()), shape=(3, 8, 8, 4)),
    "wrapped and split": lambda: built(
        KL.TimeDistributed(KL.Conv1D(3, 3, activation="hard_sigmoid"))
    ),
    "lambda": lambda: built(KL.Lambda(lambda x, by: x * by, arguments={"by": 2.0})),
    "sums": lambda: built(conv(), lambda x: (x + 1.0) * 2 - 3 / (abs(x) + np.ones(8, np.float32))),
    "powers": lambda: built(lambda x: -(x**2) + x // 2 + x % 3),
    "functions": lambda: built(
        lambda x: tf.nn.relu(x) + tf.nn.relu6(x) + tf.nn.gelu(x) + tf.nn.swish(x) + tf.nn.softmax(x)
    ),
    "functions of tf_keras": lambda: built(
        lambda x: tf_keras.activations.hard_sigmoid(x) + tf_keras.backend.sigmoid(x)
    ),
    "shuffled": lambda: built(shuffled),
    "rows": lambda: built(rows),
    "pieces": lambda: built(pieces),
    "reduced": lambda: built(
        lambda x: [tf.reduce_max(x, -1, keepdims=True), tf.argmax(x, -1), tf.math.reduce_std(x, 1)]
    ),
    "products": lambda: built(
        lambda x: [tf.matmul(x, x, transpose_b=True), tf.einsum("bhwc,bhvc->bhwv", x, x)]
    ),
    "gated": gated,
    "open size": pyramid,
    "as large as another": as_large_as,
    "slashes in names": lambda: built(conv(name="block/conv"), KL.ReLU(name="block/relu")),
    "random at inference": lambda: built(conv(), lambda x: KL.Dropout(0.5)(x, training=True)),
}  # fmt: skip


def randomised(model):
    """Gives what starts at 0 or 1 other values, so that a wrong order of weights shows."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        name = weight.name.rpartition("/")[2].partition(":")[0]
        if name in ("count", "mean", "variance") or "kernel" in name:
            continue
        weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


@pytest.mark.parametrize("name", SAME)
def test_a_layer_computes_the_same_in_both(name):
    """What the bridge compared itself, once more: on other inputs and whole models."""
    tf_keras.utils.set_random_seed(0)
    model = randomised(SAME[name]())
    before = model.get_weights()
    converted = bridge.to_keras3(model)
    for layer in model.layers:
        if layer.weights and "/" not in layer.name:
            assert converted.get_layer(layer.name).trainable == layer.trainable
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    if name == "random at inference":
        return
    random = np.random.default_rng(5)
    shape = (3, *(size or 16 for size in model.input_shape[1:]))
    x = random.integers(0, 7, shape) if name == "words" else random.normal(0, 3, shape)
    found = keras.tree.flatten(converted(x.astype(np.float32), training=False))
    expected = tf.nest.flatten(model(x.astype(np.float32), training=False))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()), rtol=1e-4)


def test_what_was_carried_over_saves_and_loads(tmp_path):
    for name in (
        "sums",
        "hard sigmoid",
        "gated",
        "shuffled",
        "recurrent of old",
        "as large as another",
    ):
        converted = bridge.to_keras3(SAME[name]())
        converted.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        x = images(*converted.input_shape[1:])
        np.testing.assert_allclose(loaded(x), converted(x), atol=1e-6)


class Mine(KL.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable("bridge")
class Registered(keras.layers.Layer):
    def call(self, x):
        return 2 * x


@tf_keras.saving.register_keras_serializable("bridge", name="Registered")
class RegisteredOfOld(KL.Layer):
    def call(self, x):
        return 2 * x


def subclassed():
    class Model(tf_keras.Model):
        def call(self, x):
            return x

    return Model(name="own")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: built(Mine(name="mine")), r"'mine' \(Mine\).*register its Keras 3 class"),
        (lambda: built(KL.RandomHeight(0.1, name="taller")), r"'taller' \(RandomHeight\).*none"),
        (lambda: built(KL.LocallyConnected2D(2, 3, name="local")), "'local'.*none"),
        (
            lambda: built(KL.BatchNormalization([1, 3], name="two")),
            r"'two' .*one axis, not \[1, 3\]",
        ),
        (
            lambda: in_row(KL.LSTM(3, activation="hard_sigmoid", name="odd")),
            "'odd' .*computes something else there.*differ by",
        ),
        (lambda: in_row(KL.LSTM(3, time_major=True, name="turned")), "'turned' .*something else"),
        (
            lambda: built(tf.nn.local_response_normalization),
            "tf.nn.local_response_normalization is not among",
        ),
        (
            lambda: built(lambda x: tf.image.resize(x, (4, 4), preserve_aspect_ratio=True)),
            "tf.image.resize with the argument preserve_aspect_ratio is not",
        ),
        (
            lambda: built(lambda x: KL.BatchNormalization(name="live")(x, training=True)),
            r"'live' \(BatchNormalization\).*called with training=True",
        ),
        (
            lambda: built(lambda x: base()(x, training=True)),
            r"'norm' \(BatchNormalization\).*called with training=True",
        ),
        (as_large_as_open, "needs a size that is open; give the input a fixed size"),
        (subclassed, "'own': expected a Functional or built Sequential"),
        (lambda: tf_keras.Sequential([conv()], name="open"), "'open': expected .*build"),
    ],
)
def test_what_cannot_be_carried_over_is_named(make, message):
    with pytest.raises(Error, match=message):
        bridge.to_keras3(make())


def test_an_own_layer_is_carried_over_to_the_class_of_the_same_name():
    converted = bridge.to_keras3(built(RegisteredOfOld()))
    assert isinstance(converted.layers[-1], Registered)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("name", ["convolutions", "transfer", "hard sigmoid", "sums"])
def test_files_of_keras_2_are_loaded(name, suffix, tmp_path):
    model = randomised(SAME[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf_keras calls HDF5 a legacy format
        model.save(tmp_path / f"model{suffix}")
    loaded = bridge.load(tmp_path / f"model{suffix}")
    x = images(8, 8, 4)
    expected = model(x).numpy()
    np.testing.assert_allclose(loaded(x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_old_keras_file_of_the_hdf5_format_is_loaded(tmp_path):
    model = built(conv())
    model.save(tmp_path / "model.h5")
    (tmp_path / "model.h5").rename(tmp_path / "model.keras")
    x = images(8, 8, 4)
    np.testing.assert_allclose(bridge.load(tmp_path / "model.keras")(x), model(x), atol=1e-5)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_of_keras_3_are_loaded(suffix, tmp_path, classifier):
    classifier.save(tmp_path / f"model{suffix}")
    x = images(8, 8, 3)
    np.testing.assert_allclose(
        bridge.load(tmp_path / f"model{suffix}")(x), classifier(x), atol=1e-6
    )


def test_files_that_hold_no_model_say_the_way_out(tmp_path, classifier):
    classifier.save_weights(tmp_path / "w.weights.h5")
    (tmp_path / "a.pb").write_bytes(b"x")
    (tmp_path / "b.keras").write_bytes(b"x")
    (tmp_path / "c.h5").write_bytes(b"x")
    (tmp_path / "saved_model").mkdir()
    for name, message in {
        "w.weights.h5": "weights without a model: save the whole model",
        "a.pb": r"expected a \.keras or \.h5 file, got .*a\.pb; save the model",
        "b.keras": "no Keras model that can be loaded here",
        "c.h5": "no Keras model that can be loaded here",
        "saved_model": "is a folder, not a .keras or .h5 file",
        "missing.keras": "no such file",
    }.items():
        with pytest.raises(Error, match=message):
            bridge.load(tmp_path / name)


def test_of_a_long_reason_the_beginning_is_told(tmp_path, classifier):
    """Keras shows the whole configuration of what it cannot make."""
    classifier.save(tmp_path / "whole.keras")
    with zipfile.ZipFile(tmp_path / "whole.keras") as old:
        members = {name: old.read(name) for name in old.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][-1]["config"]["bias_initializer"]["class_name"] = {}
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as new:
        for name, content in members.items():
            new.writestr(name, content)
    with pytest.raises(Error, match=r"that can be loaded here: .{400} \.\.\.$"):
        bridge.load(tmp_path / "b.keras")
