import warnings

import keras
import numpy as np
import odd_networks
import pytest
import tensorflow as tf
import tf_keras
from keras import layers

import tfdwd
from tfdwd import agreement, conversion, lite
from tfdwd.batches import pack
from tfdwd.conversion import export
from tfdwd.errors import Error


def images(count, *shape):
    return np.random.default_rng(3).normal(size=(count, *shape)).astype(np.float32)


def test_the_file_gives_what_keras_gives(tmp_path, classifier):
    path = tmp_path / "model.tflite"
    data = images(5, 8, 8, 3)
    report = export(classifier, path, data=data)
    file = lite.Model(path)
    found = np.concatenate([file.run([data[i : i + 1]])[0] for i in range(5)])
    # Float32 sums of at most 9 * 6 terms in another order: a few units in the last place.
    np.testing.assert_allclose(found, classifier(data), rtol=1e-5, atol=1e-6)
    assert [(t.name, t.shape, t.dtype) for t in file.inputs] == [
        ("image", (1, 8, 8, 3), np.float32)
    ]
    assert [(t.name, t.shape) for t in file.outputs] == [("scores", (1, 7))]
    assert report.bytes == path.stat().st_size
    assert report.images == 5
    assert report.operators == {
        "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1,
    }  # fmt: skip
    [output] = report.outputs
    assert output.name == "scores" and output.top1_agreement == 1.0
    assert 0 <= output.largest_difference < 1e-5
    assert report.needed_runtime and report.checked_with == lite.runtime_version()
    assert list(tmp_path.iterdir()) == [path]


def test_depthwise_operators_tell_their_shapes(tmp_path, classifier):
    export(classifier, tmp_path / "model.tflite")
    [depthwise] = [
        operator
        for operator in lite.operators(tmp_path / "model.tflite")
        if operator.name == "DEPTHWISE_CONV_2D"
    ]
    assert depthwise.inputs == ((1, 6, 6, 6), (1, 3, 3, 6), (6,))
    assert depthwise.outputs == ((1, 4, 4, 6),)
    assert not depthwise.custom


def test_dicts_keep_names_and_order(tmp_path, two_in_two_out):
    path = tmp_path / "model.tflite"
    data = {"picture": images(3, 6, 6, 2), "extra": images(3, 3)}
    report = export(two_in_two_out, path, data=data)
    file = lite.Model(path)
    assert [(tensor.name, tensor.shape) for tensor in file.inputs] == [
        (tensor.name, (1, *tensor.shape[1:])) for tensor in two_in_two_out.inputs
    ]
    assert [(tensor.name, tensor.shape) for tensor in file.outputs] == [
        ("a", (1, 1)),
        ("z", (1, 4)),
    ]
    expected = two_in_two_out(data)
    by_name = {"picture": data["picture"][:1], "extra": data["extra"][:1]}
    found = file.run([by_name[tensor.name] for tensor in file.inputs])
    np.testing.assert_allclose(found[0], expected["a"][:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], expected["z"][:1], rtol=1e-5, atol=1e-6)
    assert [(output.name, output.top1_agreement) for output in report.outputs] == [
        ("a", None),  # One column: there is nothing to choose from.
        ("z", 1.0),
    ]


@pytest.mark.parametrize("names", [("b", "a"), ("a", "b")])
def test_lists_keep_their_order_whatever_the_names(tmp_path, names):
    first, second = keras.Input((4,), name=names[0]), keras.Input((4,), name=names[1])
    outputs = [
        layers.Lambda(lambda x: x * 2, name="y" + names[0])(first),
        layers.Subtract(name="x" + names[1])([first, second]),
    ]
    path = tmp_path / "model.tflite"
    export(keras.Model([first, second], outputs), path)
    file = lite.Model(path)
    assert [tensor.name for tensor in file.inputs] == list(names)
    assert [tensor.name for tensor in file.outputs] == ["y" + names[0], "x" + names[1]]
    doubled, difference = file.run([np.full((1, 4), 5.0), np.full((1, 4), 3.0)])
    assert (doubled == 10).all() and (difference == 2).all()


def test_a_layer_that_gives_two_outputs_gives_two_names(tmp_path):
    x = keras.Input((4,))
    twice = layers.Dense(4, name="shared")
    once = twice(x)
    export(keras.Model(x, [once, twice(once)]), tmp_path / "model.tflite")
    outputs = lite.Model(tmp_path / "model.tflite").outputs
    assert [tensor.name for tensor in outputs] == ["shared", "shared_1"]


def test_one_tensor_given_out_twice_has_two_names(tmp_path):
    x = keras.Input((4,), name="same")
    y = layers.Dense(2, name="y")(x)
    export(keras.Model(x, [y, x, y]), tmp_path / "model.tflite", data=images(2, 4))
    outputs = lite.Model(tmp_path / "model.tflite").outputs
    assert [tensor.name for tensor in outputs] == ["y", "same", "y_1"]


def test_names_that_are_no_identifiers_are_mended(tmp_path):
    inputs = [
        keras.Input((2,), name=name) for name in ("image-1", "image.1", "1st", "class", "self")
    ]
    model = keras.Model(inputs, layers.Concatenate(name="all-1")(inputs))
    path = tmp_path / "model.tflite"
    export(model, path, data=[images(2, 2) for _ in inputs])
    names = [tensor.name for tensor in lite.Model(path).inputs]
    assert names == ["image_1", "image_1_1", "input_1st", "input_class", "input_self"]
    assert [tensor.name for tensor in lite.Model(path).outputs] == ["all-1"]


def test_nested_outputs_go_by_their_keys(tmp_path):
    x = keras.Input((4,))
    first, second = layers.Dense(2, name="first")(x), layers.Dense(3, name="second")(x)
    export(keras.Model(x, {"both": [first, second]}), tmp_path / "model.tflite")
    outputs = lite.Model(tmp_path / "model.tflite").outputs
    assert [(tensor.name, tensor.shape[1]) for tensor in outputs] == [("both/0", 2), ("both/1", 3)]


def test_weights_are_constants_and_state_is_not_changed(tmp_path):
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(16), layers.BatchNormalization(), layers.Dropout(0.5)]
    )
    before = [weight.copy() for weight in model.get_weights()]
    export(model, tmp_path / "model.tflite", data=images(4, 8))
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    names = {operator.name for operator in lite.operators(tmp_path / "model.tflite")}
    assert not names & {"VAR_HANDLE", "READ_VARIABLE", "CALL_ONCE"}


def test_at_most_64_images_are_compared(tmp_path, classifier):
    path = tmp_path / "model.tflite"
    assert export(classifier, path, data=images(70, 8, 8, 3)).images == 64
    endless = (images(24, 8, 8, 3) for _ in iter(int, 1))
    assert export(classifier, path, data=endless).images == 64


def test_without_data_nothing_is_compared_and_the_report_says_so(tmp_path, classifier):
    report = export(classifier, tmp_path / "model.tflite")
    assert report.images == 0 and report.outputs == ()
    assert str(report).endswith("not compared with Keras: no data was given")


def test_the_report_prints_and_survives_json(tmp_path, classifier):
    report = export(classifier, tmp_path / "model.tflite", data=images(2, 8, 8, 3))
    assert "1 DEPTHWISE_CONV_2D" in str(report)
    assert "against Keras on 2 images" in str(report)
    assert str(report).splitlines()[-1].split()[0] == "scores"
    assert str(report).splitlines()[-1].split()[-1] == "1.000"
    assert conversion.ExportReport.from_json(report.to_json()) == report


def test_resnet8_agrees_on_real_images(tmp_path, resnet8, cifar):
    report = export(resnet8, tmp_path / "resnet8.tflite", data=cifar["x_test"])
    assert report.images == 64
    assert report.outputs[0].largest_difference <= 1e-4
    assert report.outputs[0].top1_agreement == 1.0


@keras.saving.register_keras_serializable("tfdwd_tests")
class NeedsCustomOperator(layers.Layer):
    def call(self, x):
        return tf.raw_ops.Betainc(a=x * x + 1.0, b=x * x + 1.0, x=tf.sigmoid(x))


def test_other_failures_of_the_converter_say_their_first_line(classifier):
    message = conversion._conversion_message(classifier, RuntimeError("the cause\nand a page more"))
    assert message == "model 'classifier' cannot be converted: the cause"


def test_an_operator_outside_of_any_layer_goes_by_its_scope(classifier):
    assert agreement.layer_name(classifier, "a/b_1/Erf@__inference_1") == "a/b_1/Erf"


@pytest.mark.parametrize("nested", [False, True])
def test_an_operator_that_litert_lacks_is_named_with_its_layer(tmp_path, nothing_left_in, nested):
    nothing_left_in(tmp_path)
    x = keras.Input((4, 4, 3))
    model = keras.Model(x, NeedsCustomOperator(name="odd_1")(layers.Conv2D(2, 1)(x)))
    if nested:
        y = keras.Input((4, 4, 3))
        model = keras.Model(y, model(y))
    with pytest.raises(Error, match=r"lacks: tf\.Betainc in layer 'odd_1'; replace those layers"):
        export(model, tmp_path / "model.tflite")


def test_a_half_precision_model_is_told_what_to_do(tmp_path):
    x = keras.Input((4, 4, 3))
    model = keras.Model(x, layers.Conv2D(2, 3, name="half", dtype="mixed_float16")(x))
    with pytest.raises(Error, match=r"tf\.Conv2D in layer 'half'.*rebuild it with .* float32"):
        export(model, tmp_path / "model.tflite")


def test_why_a_model_cannot_run_is_told_without_the_calls_around(tmp_path):
    half = layers.Conv2D(2, 3, dtype="bfloat16")  # the wrapper feeds it float32
    model = keras.Sequential([keras.Input((2, 4, 4, 2)), layers.TimeDistributed(half)])
    with pytest.raises(Error, match=r"cannot run on inputs of .*bfloat16 .* float32") as caught:
        export(model, tmp_path / "model.tflite")
    assert not any(part in str(caught.value) for part in ("File", "user code", "\x1b", "Arguments"))


def test_what_keras_has_quantised_is_named(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Dense(3, name="whole")])
    model.layers[0].quantize("int8")
    with pytest.raises(Error, match=r"Keras has quantised 'whole' \(int8_from_float32\); pass the"):
        export(model, tmp_path / "model.tflite", data=images(4, 4, 4, 2))


def test_of_many_operators_that_litert_lacks_a_few_are_named(tmp_path):
    each = layers.Conv2D(2, 3, padding="same", activation="gelu", name="each", dtype="bfloat16")
    frames = [keras.Input((2, 4, 4, 2)), layers.TimeDistributed(each, dtype="bfloat16")]
    head = [layers.Dense(3, "tanh", dtype="bfloat16"), layers.Softmax(dtype="bfloat16")]
    with pytest.raises(Error, match=r"in layer 'each'.* and \d+ more; the model computes in bfl"):
        export(keras.Sequential([*frames, *head]), tmp_path / "model.tflite")


def test_a_file_that_disagrees_is_not_written(tmp_path, nothing_left_in, classifier, monkeypatch):
    nothing_left_in(tmp_path)
    convert = conversion.convert

    def converts_wrongly(model, *arguments, **options):
        other = keras.models.clone_model(model)
        other.set_weights([weight * 1.01 for weight in model.get_weights()])
        return convert(other, *arguments, **options)

    monkeypatch.setattr(conversion, "convert", converts_wrongly)
    with pytest.raises(Error, match=r"output 'scores' .* differs from Keras by .*; nothing was"):
        export(classifier, tmp_path / "model.tflite", data=images(4, 8, 8, 3))


@pytest.mark.parametrize("name", odd_networks.NETWORKS)
def test_odd_networks_agree_with_keras(tmp_path, name):
    """In float32 within 1e-3 by `export` itself; in int8 as far as 8 bits go."""
    model = odd_networks.network(name)
    data = odd_networks.images_of(name, model)
    path = tmp_path / "model.tflite"
    report = export(model, path, data=data if len(data) > 1 else data[0])
    # Keras itself gives the reference, at the batch that the file has.
    file = lite.Model(path)
    assert [tensor.shape for tensor in file.inputs] == [(report.batch, *x.shape[1:]) for x in data]
    found = file.run([x[: report.batch] for x in data])
    arranged = pack(model, [x[: report.batch] for x in data])
    expected = keras.tree.flatten(model(arranged, training=False))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
    assert report.batch == (4 if name in ("pairs", "reshaped batch") else 1)


INT8 = (
    "segmenter", "two views", "signal", "unrolled", "words", "gates", "mask", "labels", "energy",
    "constants", "dynamic resize", "detector", "attention", "pairs", "odd names", "loop",
)  # fmt: skip


@pytest.mark.parametrize("name", INT8)
def test_odd_networks_in_int8(tmp_path, name):
    model = odd_networks.network(name)
    data = odd_networks.images_of(name, model)
    data = data if len(data) > 1 else data[0]
    report = export(model, tmp_path / "model.tflite", quantize="int8", data=data)
    assert len(report.outputs) == len(model.outputs) and report.layers
    for output, tensor in zip(report.outputs, model.outputs, strict=True):
        if tensor.dtype == "float32":
            assert output.sqnr_db > 10
        else:
            assert output.top1_agreement > 0.8


def test_sizes_come_from_the_data_or_from_input_shape(tmp_path):
    model = odd_networks.network("segmenter")
    path = tmp_path / "model.tflite"
    export(model, path, input_shape=(8, 12, 3))
    assert lite.Model(path).inputs[0].shape == (1, 8, 12, 3)
    export(model, path, data=images(2, 6, 4, 3), input_shape=(6, 4, 3))
    assert lite.Model(path).inputs[0].shape == (1, 6, 4, 3)
    assert model.inputs[0].shape == (None, None, None, 3)
    with pytest.raises(Error, match=r"input_shape says \(8, 8, 3\), but the data is \(6, 4, 3\)"):
        export(model, path, data=images(2, 6, 4, 3), input_shape=(8, 8, 3))


def test_a_size_that_a_layer_cannot_have(tmp_path, nothing_left_in):
    nothing_left_in(tmp_path)
    model = odd_networks.network("segmenter")
    with pytest.raises(Error, match=r"cannot run on inputs of \[\(1, 7, 7, 3\)\]: "):
        export(model, tmp_path / "model.tflite", input_shape=(7, 7, 3))


def _recurrent(layer):
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Reshape((8, 32))(layers.Conv2D(4, 3, padding="same")(image))
    return keras.Model(image, layers.Dense(3)(layer(x)))


def _lambda(function):
    return layers.Lambda(function, output_shape=(32,), name="looped")


# TensorFlow's calibrator ends the process at each of these: the test itself would not return.
LOOPS = {
    "lstm": lambda: layers.LSTM(4, name="looped"),
    "gru": lambda: layers.GRU(4, name="looped"),
    "both ways": lambda: layers.Bidirectional(layers.LSTM(4), name="looped"),
    "map": lambda: _lambda(lambda x: keras.ops.map(lambda row: keras.ops.sum(row, 0), x)),
    "scan": lambda: _lambda(
        lambda x: keras.ops.scan(lambda c, row: (c + row, c), 0 * x[0, 0], x[0])[1]
    ),
}


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("quantize", ["int8", "int16x8"])
def test_loops_that_kill_the_calibrator_are_refused(tmp_path, nothing_left_in, kind, quantize):
    nothing_left_in(tmp_path)
    model = _recurrent(LOOPS[kind]())
    with pytest.raises(Error, match=r"ranges inside of loops, .* '.*loop.*'; make .* unroll=True"):
        export(model, tmp_path / "m.tflite", quantize=quantize, data=images(32, 8, 8, 3))


def test_loops_are_fine_in_float(tmp_path):
    report = export(_recurrent(LOOPS["lstm"]()), tmp_path / "m.tflite", data=images(4, 8, 8, 3))
    assert "WHILE" in report.operators and report.outputs[0].sqnr_db > 100


def test_activations_that_overflow_are_refused_before_the_converter_dies_of_them(
    tmp_path, nothing_left_in
):
    nothing_left_in(tmp_path)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 3, name="huge", kernel_initializer="ones")(image)
    x = layers.Activation("exponential", name="burst")(x * 1000)
    model = keras.Model(image, keras.ops.minimum(x, 1.0))  # finite again
    data = images(40, 8, 8, 3)
    for quantize in ("int8", "int16x8"):
        with pytest.raises(Error, match=r"layer 'burst' gives NaN, infinity or .* images 0\.\.15"):
            export(model, tmp_path / "m.tflite", quantize=quantize, data=data)


def test_weights_and_outputs_that_are_not_finite(tmp_path, nothing_left_in, classifier):
    nothing_left_in(tmp_path)
    broken = keras.models.clone_model(classifier)
    broken.set_weights([np.where(w > w.max() / 2, np.nan, w) for w in classifier.get_weights()])
    with pytest.raises(Error, match=r"weight '.*conv2d.*kernel' of model 'classifier' holds NaN"):
        export(broken, tmp_path / "m.tflite")
    divided = keras.Model(
        x := keras.Input((4,)), layers.Activation("linear", name="y")(1 / (x * 0))
    )
    with pytest.raises(Error, match=r"output 'y' of model .* is NaN or infinite .*, in Keras too"):
        export(divided, tmp_path / "m.tflite", data=images(2, 4))


def test_an_output_that_depends_on_the_other_images_is_refused(tmp_path, nothing_left_in):
    nothing_left_in(tmp_path)
    x = keras.Input((4,))
    model = keras.Model(x, x - keras.ops.mean(x, axis=0, keepdims=True))
    with pytest.raises(Error, match="depends on the other images of a batch; nothing was written"):
        export(model, tmp_path / "m.tflite", data=images(8, 4))


def test_an_empty_output_agrees_with_itself(tmp_path):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Conv2D(2, 3)(image)[:, :0])
    report = export(model, tmp_path / "m.tflite", data=images(2, 8, 8, 3))
    assert report.outputs[0].largest_difference == 0 and report.outputs[0].top1_agreement is None


def test_other_backends_are_refused_by_every_verb(tmp_path, classifier, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for verb in (
        lambda: export(classifier, tmp_path / "m.tflite"),
        lambda: tfdwd.plan(classifier, images(8, 8, 8, 3), macs=0.5),
        lambda: tfdwd.benchmark({"m": classifier}),
        lambda: tfdwd.write_micro_models(classifier, tmp_path / "micro"),
    ):
        with pytest.raises(Error, match="expected Keras on TensorFlow, got it on jax: save the"):
            verb()


class AlwaysDropping(layers.Dropout):
    """Monte Carlo dropout: it leaves its caller no choice."""

    def call(self, x, training=None):
        return super().call(x, training=True)


def test_what_drops_in_training_does_not_drop_in_the_file(tmp_path):
    x = keras.Input((8,))
    y = layers.Dense(4)(AlwaysDropping(0.5)(layers.GaussianNoise(1.0)(x, training=True)))
    model = keras.Model(x, y)
    report = export(model, tmp_path / "m.tflite", data=images(8, 8))
    assert report.operators == {"FULLY_CONNECTED": 1} and report.outputs[0].sqnr_db > 100


def test_text_is_refused(tmp_path, nothing_left_in):
    nothing_left_in(tmp_path)
    words = keras.Input((1,), dtype="string", name="words")
    model = keras.Model(words, layers.Hashing(5)(words))
    with pytest.raises(Error, match=r"input 'words' of model .* takes text, which LiteRT cannot"):
        export(model, tmp_path / "m.tflite")


def test_channels_first_is_compared_or_says_why_not(tmp_path):
    """TensorFlow runs it on some processors alone: by oneDNN on those with AVX-512."""
    image = keras.Input((3, 8, 8))
    model = keras.Model(image, layers.Conv2D(2, 3, data_format="channels_first", name="c")(image))
    data, path = images(2, 3, 8, 8), tmp_path / "m.tflite"
    try:
        model(data)
    except tf.errors.OpError:
        with pytest.raises(Error, match="cannot run: layer 'c' is channels_first, which"):
            export(model, path, data=data)
        assert not path.exists()
    else:
        assert export(model, path, data=data).outputs[0].largest_difference <= 1e-5


def test_maps_of_classes_agree_pixel_by_pixel(tmp_path):
    model = odd_networks.network("segmenter")
    [data] = odd_networks.images_of("segmenter", model)
    path = tmp_path / "m.tflite"
    report = export(model, path, quantize="int8", data=data)
    file, few = lite.Model(path), data[:40]
    found = np.concatenate([file.run([few[i : i + 1]])[0] for i in range(len(few))])
    same = found.argmax(-1) == np.asarray(model(few)).argmax(-1)
    assert report.outputs[0].top1_agreement == pytest.approx(same.mean()) and 0.5 < same.mean() < 1


def test_each_file_is_read_once(tmp_path, classifier, monkeypatch):
    """One interpreter that runs as the user's will, and one for each look inside."""
    opened, parsed = [], []
    load, operators = lite.Model.__init__, lite.operators
    monkeypatch.setattr(
        lite.Model, "__init__", lambda *args, **o: (opened.append(o), load(*args, **o))[1]
    )
    monkeypatch.setattr(lite, "operators", lambda file: (parsed.append(file), operators(file))[1])
    export(classifier, tmp_path / "m.tflite", quantize="int8", data=images(32, 8, 8, 3))
    assert opened == [{"keep": True}, {}, {"keep": True}]
    assert len(parsed) == len(set(parsed)) == 2  # the float file and the quantised one


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 1)]), "leaves"),
        (lambda: Subclassed(), "subclassed or was not built"),
        (lambda: keras.Sequential([layers.Dense(3)], name="bare"), "'bare' has no inputs"),
        (lambda: tf_keras.Sequential([tf_keras.layers.Input((3,))]), "expected a Keras 3 model"),
        (lambda: "model.keras", r"expected a Keras 3 model, got builtins\.str"),
    ],
)
def test_models_that_cannot_be_exported(tmp_path, nothing_left_in, model, message):
    nothing_left_in(tmp_path)
    with pytest.raises(Error, match=message):
        export(model(), tmp_path / "model.tflite")


def test_wrong_paths_and_wrong_data_leave_nothing(tmp_path, nothing_left_in, classifier):
    nothing_left_in(tmp_path)
    with pytest.raises(Error, match=r"ends in \.tflite, got .*model\.lite"):
        export(classifier, tmp_path / "model.lite")
    with pytest.raises(Error, match="its folder does not exist"):
        export(classifier, tmp_path / "none" / "model.tflite")
    with pytest.raises(Error, match="'image': NaN or infinity"):
        export(classifier, tmp_path / "model.tflite", data=images(2, 8, 8, 3) * np.nan)
    with pytest.raises(Error, match="the data is empty"):
        export(classifier, tmp_path / "model.tflite", data=images(0, 8, 8, 3))


def test_a_constant_zero_output_agrees_with_itself(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, kernel_initializer="zeros")])
    report = export(model, tmp_path / "model.tflite", data=images(2, 4))
    assert report.outputs[0].largest_difference == 0


def test_a_report_checks_itself():
    with pytest.raises(Error, match="3 images compared, but 0 outputs"):
        conversion.ExportReport("a", 1, "none", {}, "", "", 3, ())


# ---------------------------------------------------------------------- quantised


@pytest.mark.parametrize(
    ("quantize", "dtype", "least_sqnr"),
    # A weight or activation of 8 bits has about 40 dB, less where its range is poorly used; one of
    # 16 bits (float16 has 11) so much more that the 8-bit weights are all that counts.
    [
        ("none", "float32", 100),
        ("float16", "float32", 55),
        ("dynamic", "float32", 25),
        ("int8", "int8", 18),
        ("int16x8", "int16", 30),
    ],
)
def test_quantised_files_agree_with_keras(classifier, tmp_path, quantize, dtype, least_sqnr):
    report = export(classifier, tmp_path / "m.tflite", quantize=quantize, data=images(40, 8, 8, 3))
    assert report.quantize == quantize and report.images == 40
    assert report.outputs[0].sqnr_db > least_sqnr
    model = lite.Model(tmp_path / "m.tflite")
    assert {model.inputs[0].dtype, model.outputs[0].dtype} == {np.dtype(dtype)}
    assert [tensor.name for tensor in (*model.inputs, *model.outputs)] == ["image", "scores"]
    assert conversion.ExportReport.from_json(report.to_json()) == report
    assert ("SQNR" in str(report)) and (bool(report.layers) == quantize.startswith("int"))


def test_weights_of_a_byte_make_a_quarter_of_the_file(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 64)), keras.layers.Conv2D(64, 3)])
    sizes = {
        quantize: export(
            model, tmp_path / "m.tflite", quantize=quantize, data=images(32, 8, 8, 64)
        ).bytes
        for quantize in conversion.QUANTIZATIONS
    }
    weights = 9 * 64 * 64
    assert 4 * weights < sizes["none"] < 4 * weights + 4096
    assert 2 * weights < sizes["float16"] < 2 * weights + 4096
    for quantize in ("dynamic", "int8", "int16x8"):
        assert weights < sizes[quantize] < weights + 8192


def test_a_quantised_file_may_take_and_give_floats(classifier, tmp_path):
    data = images(40, 8, 8, 3)
    export(classifier, tmp_path / "m.tflite", quantize="int8", float_io=True, data=data)
    model = lite.Model(tmp_path / "m.tflite")
    assert model.inputs[0].dtype == model.outputs[0].dtype == np.float32
    names = [operator.name for operator in lite.operators(tmp_path / "m.tflite")]
    assert names[0] == "QUANTIZE" and names[-1] == "DEQUANTIZE"


def test_pads_with_infinity_are_quantised(tmp_path):
    # As KerasHub's ResNet V2 pads before its first pooling; the last pad is before a least one.
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same", bias_initializer=keras.initializers.Constant(-3))(x)
    pad = [(0, 0), (1, 1), (1, 1), (0, 0)]
    y = layers.MaxPooling2D(3, 2)(keras.ops.pad(y, pad, constant_values=-np.inf))
    y = -layers.MaxPooling2D(3, 2)(-keras.ops.pad(y, pad, constant_values=np.inf))
    model = keras.Model(x, y)
    images = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
    report = export(model, tmp_path / "m.tflite", quantize="int8", data=images)
    assert report.outputs[0].sqnr_db > 25


def test_the_layer_with_an_outlier_costs_most(tmp_path):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, name="first"),
            layers.DepthwiseConv2D(3, name="spread"),
            layers.Conv2D(8, 1, name="last"),
        ]
    )
    # One channel of the depthwise layer is a thousand times the others, and nothing reads it.
    spread, last = model.get_layer("spread"), model.get_layer("last")
    kernel = np.asarray(spread.get_weights()[0])
    kernel[:, :, 0] *= 1000
    spread.set_weights([kernel, spread.get_weights()[1]])
    weights = np.asarray(last.get_weights()[0])
    weights[:, :, 0] = 0
    last.set_weights([weights, last.get_weights()[1]])
    report = export(model, tmp_path / "m.tflite", quantize="int8", data=images(40, 8, 8, 3))
    costs = {layer.name: layer.added for layer in report.layers}
    assert set(costs) == {"first", "spread", "last"}
    # What the outlier hides shows in the layer behind.
    assert report.layers[0].name == "last" and costs["last"] > 10 * costs["first"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "quantize: expected one of none, float16, .*, got 'int4'"),
        ({"quantize": "int8"}, "quantize='int8': expected at least 32 real images .*, got 0"),
        ({"quantize": "int16x8", "count": 31}, "expected at least 32 real images .*, got 31"),
        ({"quantize": "float16", "float_io": True}, "float_io: expected quantize 'int8' or"),
    ],
    ids=str,
)
def test_wrong_ways_to_quantise(classifier, tmp_path, nothing_left_in, options, message):
    nothing_left_in(tmp_path)
    if count := options.pop("count", 0):
        options["data"] = images(count, 8, 8, 3)
    with pytest.raises(Error, match=message):
        export(classifier, tmp_path / "m.tflite", **options)


def test_several_inputs_are_quantised_by_name(two_in_two_out, tmp_path):
    source = np.random.default_rng(0)
    data = {"picture": source.normal(size=(40, 6, 6, 2)), "extra": source.normal(size=(40, 3))}
    report = export(two_in_two_out, tmp_path / "m.tflite", quantize="int8", data=data)
    assert [output.sqnr_db > 20 for output in report.outputs] == [True, True]


@pytest.mark.parametrize("name", ["my conv", "[conv]"])
def test_names_that_tensorflow_cannot_save_are_those_of_the_file(name, tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 4, 2), name="image"), layers.Conv2D(3, 3, name=name)], name="my net"
    )
    weights = [variable.path for variable in model.variables]
    export(model, tmp_path / "model.tflite", data=np.ones((2, 4, 4, 2)))
    [output] = lite.Model(tmp_path / "model.tflite").outputs
    assert output.name == name
    assert [variable.path for variable in model.variables] == weights


def test_of_data_without_an_end_the_first_images_are_taken(classifier, tmp_path):
    data = tf.data.Dataset.from_tensors(np.ones((3, 8, 8, 3))).repeat()
    assert export(classifier, tmp_path / "model.tflite", data=data).images == 64


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_argmax_is_one_operator(quantize: str, tmp_path) -> None:
    """Keras itself looks at the bits of floats, which LiteRT has no operator for."""
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3)(image)
    found = [
        keras.ops.argmax(x, -1),
        keras.ops.argmin(x, 1, keepdims=True),
        keras.ops.argmax(keras.ops.relu(x), -1),
    ]
    model = keras.Model(image, [*found, x])
    images = np.random.default_rng(0).normal(size=(40, 6, 6, 3)).astype(np.float32)
    report = tfdwd.export(model, tmp_path / "a.tflite", quantize=quantize, data=images)
    assert report.operators["ARG_MAX"] == 2 and report.operators["ARG_MIN"] == 1
    assert "EQUAL" not in report.operators
    outputs = lite.Model(tmp_path / "a.tflite").run([images[:1]])
    same = np.mean(outputs[0] == outputs[3].argmax(-1))
    assert same > (0.99 if quantize == "none" else 0.8)


def test_inputs_of_a_dict_are_named_by_its_keys(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras would have the keys be the names
        one, two = keras.Input((6, 6, 3)), keras.Input((2,))
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(one))
        model = keras.Model({"picture": one, "extra": two}, x + two)
        rng = np.random.default_rng(0)
        data = {
            "extra": rng.normal(size=(8, 2)).astype(np.float32),
            "picture": rng.normal(size=(8, 6, 6, 3)).astype(np.float32),
        }
        tfdwd.export(model, tmp_path / "a.tflite", data=data)
        assert {x.name for x in lite.Model(tmp_path / "a.tflite").inputs} == {"picture", "extra"}
        found = tfdwd.evaluate(tmp_path / "a.tflite", data, reference=model)
        assert found["agreement"] == pytest.approx(1)
        student = tfdwd.decompose(model, data, rank={"conv*": 2})
        np.testing.assert_allclose(student(data), model(data), atol=1e-4)
