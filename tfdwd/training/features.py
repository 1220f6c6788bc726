"""Outputs of layers beside a model's own, those inside nested models included."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfdwd import bridge, graph
from tfdwd.batches import pack
from tfdwd.errors import Error
from tfdwd.inference import at_inference, names_for_tensorflow

# Turns inputs, in the order of the model's, into its outputs and the features; flat lists.
Runner = Callable[[Sequence[Any], bool | None], tuple[list[Any], list[Any]]]


def runner(model: Any, paths: Sequence[str] = ()) -> Runner:
    """A function that runs a model and gives the outputs of some layers, too.

    Args:
      model: a model of Keras 3 or of tf_keras.
      paths: of the layers, "backbone/conv" for those of a nested model; each is in the model.

    Returns:
      (inputs, training) -> (outputs, features). training=False is as in
      `tfdwd.execution.inference`.
    """
    if paths and bridge.kit(model) is not keras:
        return _runner_of_tf_keras(model, paths)

    named = [model] if bridge.kit(model) is keras else []  # names of tf_keras are fine

    def run(inputs: Sequence[Any], training: bool | None) -> tuple[list[Any], list[Any]]:
        if paths or (training is False and graph.is_nested(model)):
            return _replayed(model, inputs, training, paths)
        with names_for_tensorflow(named):
            return keras.tree.flatten(model(pack(model, list(inputs)), training=training)), []

    return run


def _runner_of_tf_keras(model: Any, paths: Sequence[str]) -> Runner:
    layers = [model.get_layer(path) for path in paths]
    extended = bridge.kit(model).Model(
        model.inputs, [*model.outputs, *(layer.output for layer in layers)]
    )

    def run(inputs: Sequence[Any], training: bool | None) -> tuple[list[Any], list[Any]]:
        found = extended(list(inputs), training=training)
        return found[: len(model.outputs)], found[len(model.outputs) :]

    return run


def last_maps(student: Any, teacher: Any) -> list[str]:
    """The last layer of the teacher whose output is a map: what is pooled, or flattened.

    Args:
      student, teacher: the models.

    Returns:
      Its path; nothing where the student has no such layer, or one of another shape.
    """
    theirs, own = _shapes(teacher), _shapes(student)
    maps = [path for path, (_, shape) in theirs.items() if _is_map(shape)]
    return [path for path in maps[-1:] if path in own and own[path][1] == theirs[path][1]]


def replaced(student: Any, teacher: Any) -> list[str]:
    """The convolutions whose kernels are of different sizes: what `tfdwd.decompose` replaced.

    Args:
      student, teacher: the models.

    Raises:
      tfdwd.Error: there is none.
    """
    theirs, own = _shapes(teacher), _shapes(student)
    found = [
        path
        for path, (size, shape) in theirs.items()
        if size and path in own and own[path][0] not in (None, size) and own[path][1] == shape
    ]
    if not found:
        raise Error(
            "features: expected a student in which convolutions of the teacher were replaced, "
            "found none; name the layers to compare with features=[...]"
        )
    return found


def named(student: Any, teacher: Any, names: Sequence[str]) -> list[str]:
    """Layers that a user names, checked to be in both models and of one shape.

    Args:
      student, teacher: the models.
      names: of the layers, "backbone/conv" for those of a nested model.

    Raises:
      tfdwd.Error: a layer is missing in one of them, or its outputs differ in shape.
    """
    theirs, own = _shapes(teacher), _shapes(student)
    right = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not right or not names:
        raise Error(
            f"features: expected 'auto', 'replaced', None or a list of layer names, got {names!r}"
        )
    for name in names:
        for whose, shapes in ("student", own), ("teacher", theirs):
            if name not in shapes:
                last = name.rpartition("/")[2]
                alike = [path for path in shapes if path.rpartition("/")[2] == last][:5]
                hint = f"; did you mean {', '.join(alike)}?" if alike else ""
                raise Error(
                    f"features: the {whose} has no layer {name!r}; layers of nested models are "
                    f"'model/layer'{hint}"
                )
        if own[name][1] != theirs[name][1]:
            raise Error(
                f"features: layer {name!r} gives {own[name][1]} in the student and "
                f"{theirs[name][1]} in the teacher; expected the same shape"
            )
    return list(names)


def _is_map(shape: tuple[int | None, ...]) -> bool:
    """Whether one image's output has places, (h, w, channels)."""
    channels_last = keras.config.image_data_format() == "channels_last"
    return len(shape) == 3 and (shape[:2] if channels_last else shape[1:]) != (1, 1)


def _shapes(model: Any) -> dict[str, tuple[Any, tuple[int | None, ...]]]:
    """{path: (kernel size of a convolution, else None; shape of the output)}."""
    found: dict[str, tuple[Any, tuple[int | None, ...]]] = {}
    if bridge.kit(model) is not keras:
        for layer in model.layers:
            inner = getattr(layer, "layer", layer)  # of a wrapper that makes it quantise-aware
            if hasattr(layer.output, "shape"):
                size = getattr(inner, "kernel_size", None)
                found[layer.name] = size, tuple(layer.output.shape[1:])
        return found
    traced = graph.trace(model)
    for call in traced.calls:
        if len(call.outputs) == 1:
            is_conv = isinstance(call.operation, keras.layers.Conv2D)
            size = call.operation.kernel_size if is_conv else None
            found.setdefault(call.path, (size, tuple(traced.specs[call.outputs[0]].shape[1:])))
    return found


def _replayed(
    model: Any, inputs: Sequence[Any], training: bool | None, paths: Sequence[str]
) -> tuple[list[Any], list[Any]]:
    """Calls the model's own layers one after the other, nested models opened up."""
    found: dict[str, Any] = {}

    def run(inner: Any, tensors: Sequence[Any], training: bool | None, prefix: str) -> list[Any]:
        function = graph.functional(inner)
        values = {
            id(spec): keras.ops.cast(x, spec.dtype)
            for spec, x in zip(function.inputs, tensors, strict=True)
        }
        for node in graph.nodes(function):
            operation, path = node.operation, prefix + node.operation.name
            args, kwargs = node.arguments.fill_in(values)
            # As in Keras, what is said here stands above what the graph says.
            mode = kwargs.get("training") if training is None else training
            if graph.is_nested(operation):
                reads = [values[id(spec)] for spec in graph.nested_inputs(node)]
                results = run(operation, reads, mode, path + "/")
            else:
                if "training" in getattr(operation, "_call_context_args", ()):
                    kwargs = {**kwargs, "training": mode}
                with names_for_tensorflow([operation]):
                    results = (
                        at_inference(operation, args, kwargs)
                        if training is False
                        else keras.tree.flatten(operation(*args, **kwargs))
                    )
            if path in paths:
                found.setdefault(path, results[0])  # of its first use
            values.update({id(spec): x for spec, x in zip(node.outputs, results, strict=True)})
        return [values[id(spec)] for spec in function.outputs]

    outputs = run(model, inputs, training, "")
    return outputs, [found[path] for path in paths]
