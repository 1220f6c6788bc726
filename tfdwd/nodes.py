"""Keras' graph of nodes: what is known of a model, a nested model or an opened layer."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from tfdwd.errors import Error


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """What the call of a layer computes, as nodes; see `tfdwd.opening`.

    Attributes:
      inputs: symbolic tensors, one for each tensor among the arguments of the call.
      outputs: symbolic tensors.
      nodes: Keras' nodes, each after those it reads from.
      names: {id(operation): a name that no other operation of the nodes has}.
    """

    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    nodes: tuple[Any, ...]
    names: dict[int, str]


def functional(model: Any) -> keras.Function:
    """The graph of nodes behind a Functional or built Sequential model.

    Raises:
      tfdwd.Error: the model is neither; the message says what to do.
    """
    if is_nested(model) and not isinstance(model, keras.Sequential):
        return model
    if isinstance(model, keras.Sequential) and is_nested(model):
        if not model.built or model._functional is None:
            raise Error(
                f"model {model.name!r}: expected a Sequential model that knows its input's shape; "
                "add a keras.Input as the first layer or call model.build(shape)"
            )
        return model._functional
    if isinstance(model, keras.Model):
        raise Error(
            f"model {model.name!r}: expected a Functional or Sequential Keras model, got the "
            f"subclass {type(model).__name__}, whose graph Keras does not record; wrap its layers "
            "in keras.Model(inputs, outputs), or decompose the Functional parts one by one"
        )
    raise Error(f"expected a Keras model, got {type(model).__name__}")


def is_nested(operation: Any) -> bool:
    """Whether a called operation is itself a model whose graph is what it computes.

    A subclass of a Functional model with a ``call`` of its own may compute anything.
    """
    if not isinstance(operation, keras.Function | keras.Sequential):
        return False
    [own] = [kind for kind in type(operation).__mro__ if "call" in vars(kind)][:1]
    return own.__module__.partition(".")[0] == "keras"


def is_convolution(layer: Any) -> bool:
    """Whether a layer or operation convolves in 1 to 3 axes: regular, depthwise, separable,
    transposed or recurrent."""
    layers = {"BaseConv", "BaseDepthwiseConv", "BaseSeparableConv", "BaseConvTranspose", "ConvLSTM"}
    operations = {"Conv", "DepthwiseConv", "SeparableConv", "ConvTranspose"}  # of keras.ops
    families = {kind.__name__ for kind in type(layer).__mro__}
    return bool(families & layers) or type(layer).__name__ in operations


def nodes(model: Any) -> Iterator[Any]:
    """Keras' nodes of a model or an opened layer (nested ones closed), each after its sources."""
    if isinstance(model, Inside):
        yield from model.nodes
        return
    by_depth = functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield node


def nested_inputs(node: Any) -> list[keras.KerasTensor]:
    """What a node feeds the nested model that it calls, in the order of that model's inputs."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    given = args[0] if args else kwargs["inputs"]
    function = functional(node.operation)
    if isinstance(given, dict) and not isinstance(function._inputs_struct, dict):
        given = [given[spec.name] for spec in function.inputs]  # as Functional.call does
    return keras.tree.flatten(given)
