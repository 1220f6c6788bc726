import sys

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import compiled_model
from ai_edge_litert import schema_py_generated as schema

from tfdwd import lite
from tfdwd.conversion import export
from tfdwd.errors import Error


@pytest.fixture(scope="module")
def content(tmp_path_factory, two_in_two_out):
    path = tmp_path_factory.mktemp("lite") / "model.tflite"
    export(two_in_two_out, path)
    return path.read_bytes()


def converted(function, *specs, flex=False):
    concrete = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    if flex:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]
    return converter.convert()


def test_inputs_are_checked(content):
    model = lite.Model(content)
    assert [tensor.name for tensor in model.inputs] == ["extra", "picture"]
    extra, picture = np.zeros((1, 3)), np.zeros((1, 6, 6, 2))
    assert [output.shape for output in model.run([extra, picture])] == [(1, 1), (1, 4)]
    with pytest.raises(Error, match="has 2 inputs, got 1 arrays"):
        model.run([extra])
    with pytest.raises(Error, match=r"'picture': expected \(1, 6, 6, 2\), got \(2, 6, 6, 2\)"):
        model.run([extra, np.zeros((2, 6, 6, 2))])


def test_fractions_are_not_cut_off():
    model = lite.Model(converted(lambda x: {"y": x + 1}, tf.TensorSpec((1, 2), tf.int32, "x")))
    np.testing.assert_array_equal(model.run([np.array([[3, 4]])])[0], [[4, 5]])
    with pytest.raises(Error, match="'x': expected int32, got float64"):
        model.run([np.array([[0.5, 1.5]])])


def test_results_are_the_callers_own(content):
    model = lite.Model(content, threads=2)
    ones = [np.ones(tensor.shape) for tensor in model.inputs]
    first = model.run(ones)
    kept = [output.copy() for output in first]
    model.run([array * 9 for array in ones])
    for output, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(output, copy)


def test_flex_operators_are_listed_as_custom():
    flexed = converted(
        lambda x: {"y": tf.sin(x)}, tf.TensorSpec((1, 2), tf.float32, "x"), flex=True
    )
    assert ("FlexSin", True) in [(op.name, op.custom) for op in lite.operators(flexed)]
    with pytest.raises(Error, match="cannot open the content given"):
        lite.Model(flexed)


def test_what_is_no_model_is_a_clear_error(tmp_path, content):
    (tmp_path / "text.tflite").write_text("not a model at all")
    for read in (lite.Model, lite.operators, lite.needed_runtime):
        with pytest.raises(Error, match=r"no such file: .*none\.tflite"):
            read(tmp_path / "none.tflite")
        with pytest.raises(Error, match=r"text\.tflite is no \.tflite model"):
            read(tmp_path / "text.tflite")
        with pytest.raises(Error, match=r"the content given is no \.tflite model"):
            read(b"")
    with pytest.raises(Error, match="the content given is a damaged"):
        lite.Model(content[:200])
    with pytest.raises(Error, match="the content given is a damaged"):
        lite.operators(content[:60])
    changed = bytearray(content)
    table = schema.Model.GetRootAs(changed, 0)._tab
    version = table.Pos + table.Offset(4)  # its first field
    changed[version : version + 4] = bytes(4)
    with pytest.raises(Error, match="schema version 0") as caught:
        lite.Model(bytes(changed))
    assert str(caught.value).isprintable()  # LiteRT ends it with a line break


def test_in_order_swaps_and_swaps_back(content):
    swapped = lite.in_order(content, ["picture", "extra"], ["z", "a"])
    model = lite.Model(swapped)
    assert [tensor.name for tensor in model.inputs] == ["picture", "extra"]
    assert [tensor.name for tensor in model.outputs] == ["z", "a"]
    arrays = {t.name: np.random.default_rng(0).random(t.shape) for t in model.inputs}
    z, a = model.run([arrays["picture"], arrays["extra"]])
    original_a, original_z = lite.Model(content).run([arrays["extra"], arrays["picture"]])
    np.testing.assert_array_equal(a, original_a)
    np.testing.assert_array_equal(z, original_z)
    assert lite.in_order(swapped, ["extra", "picture"], ["a", "z"]) == content


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_each_output_alone_is_what_the_whole_model_gives(tmp_path, two_in_two_out, quantize):
    images = [np.random.default_rng(0).random((32, *x.shape[1:])) for x in two_in_two_out.inputs]
    export(two_in_two_out, tmp_path / "m.tflite", quantize=quantize, data=images)
    whole = lite.Model(tmp_path / "m.tflite")
    parts = list(lite.each_output((tmp_path / "m.tflite").read_bytes()))
    few = [array[:1] for array in images]
    for part, tensor, expected in zip(parts, whole.outputs, whole.run(few), strict=True):
        model = lite.Model(part)
        assert [x.name for x in model.inputs] == [x.name for x in whole.inputs]
        assert model.outputs == (tensor,)
        np.testing.assert_array_equal(model.run(few)[0], expected)
    assert all(len(part) < (tmp_path / "m.tflite").stat().st_size for part in parts)
    needed = [operator for part in parts for operator in lite.operators(part)]
    assert set(needed) == set(lite.operators(tmp_path / "m.tflite"))
    assert len(lite.operators(parts[0])) < len(needed)


def test_a_model_without_a_signature_has_the_names_of_its_tensors():
    concrete = tf.function(lambda x: x + 1).get_concrete_function(
        tf.TensorSpec((1, 2), tf.float32, "plain")
    )
    bare = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    assert [tensor.name for tensor in lite.Model(bare).inputs] == ["plain"]


def test_nothing_is_written_to_standard_output(content, capfd):
    model = lite.Model(content)
    model.run([np.zeros(tensor.shape) for tensor in model.inputs])
    assert capfd.readouterr().out == ""


def test_real_values_go_into_an_int8_file_and_come_out(tmp_path, classifier):
    data = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
    export(classifier, tmp_path / "m.tflite", quantize="int8", data=data)
    model = lite.Model(tmp_path / "m.tflite")
    [tensor] = model.inputs
    limits = (np.array([-128, 127]) - tensor.zero_point) * tensor.scale
    np.testing.assert_array_equal(tensor.quantized(np.array([-1e9, 1e9])), [-128, 127])
    np.testing.assert_allclose(tensor.real(np.array([-128, 127], np.int8)), limits, rtol=1e-6)
    held = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_array_equal(tensor.quantized(tensor.real(held)), held)
    [scores] = model.run([data[:1]])
    assert scores.dtype == np.float32
    expected = np.asarray(classifier(data[:1]))
    assert np.abs(scores - expected).max() < 0.05 * np.abs(expected).max()
    # The file holds whole numbers: all that comes out is a multiple of the output's scale.
    steps = scores / model.outputs[0].scale
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_activations_are_what_each_operator_writes(tmp_path, classifier):
    data = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    export(classifier, tmp_path / "m.tflite")
    written = [name for op in lite.operators(tmp_path / "m.tflite") for name in op.writes]
    file = lite.Model(tmp_path / "m.tflite", keep=True)
    found = file.activations([data], written)
    assert set(found) == set(written)
    np.testing.assert_allclose(found[written[-1]], np.asarray(classifier(data)), atol=1e-5)
    assert file.output_tensors() == {written[-1]: "scores"}


def test_compiled_model_reads_the_inputs_as_the_interpreter_does(content, tmp_path, two_in_two_out):
    random = np.random.default_rng(0).random
    data = {x.name: random((40, *x.shape[1:])) for x in two_in_two_out.inputs}
    export(two_in_two_out, tmp_path / "int8.tflite", quantize="int8", data=data)
    for source in (content, tmp_path / "int8.tflite"):
        expected = {tensor.name: tensor for tensor in lite.Model(source).inputs}
        model = lite.CompiledModel(source, 1, "cpu")
        assert {tensor.name for tensor in model.inputs} == set(expected)
        for tensor in model.inputs:
            other = expected[tensor.name]
            assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
            assert (tensor.scale, tensor.zero_point) == (other.scale, other.zero_point)
        model.load([np.ones(tensor.shape) for tensor in model.inputs])
        model.invoke()
        assert model.fully_accelerated


@pytest.mark.parametrize("accelerator", lite.ACCELERATORS)
def test_compiled_model_of_a_damaged_file(content, accelerator, capfd):
    with pytest.raises(Error, match=r"LiteRT .* cannot open the content given: .*flatbuffer"):
        lite.CompiledModel(content[:400], 1, accelerator)
    assert "ERROR" not in capfd.readouterr().err


def test_a_file_that_xnnpack_cannot_run_whole_is_not_fully_accelerated():
    spec = tf.TensorSpec((1, 4), tf.float32)
    model = lite.CompiledModel(converted(lambda x: tf.math.top_k(x, 2)[0] * 2, spec), 1, "cpu")
    assert not model.fully_accelerated


def test_an_accelerator_that_runs_a_part(content, monkeypatch):
    """A stand-in for LiteRT with a GPU that has some operators only."""
    made = compiled_model.CompiledModel.from_buffer

    def from_buffer(source, options):
        if options.hardware_accelerators == compiled_model.HardwareAccelerator.GPU:
            raise RuntimeError("Some ops are not accelerated.")
        options.hardware_accelerators = compiled_model.HardwareAccelerator.CPU
        return made(source, options=options)

    monkeypatch.setattr(compiled_model.CompiledModel, "from_buffer", from_buffer)
    assert lite.CompiledModel(content, 1, "gpu").fully_accelerated is False


def test_standard_error_comes_back(content, capfd):
    lite.CompiledModel(content, 1, "cpu")
    print("here", file=sys.stderr)
    assert capfd.readouterr().err == "here\n"
