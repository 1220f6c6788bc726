"""Times of a .tflite file's operators from a profiler's log, by Keras layer and beside a plan."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfdwd import files, lite, reporting
from tfdwd.errors import Error
from tfdwd.logs import OperatorTime, read_operators
from tfdwd.plans import Plan
from tfdwd.records import Amount, dumps

if TYPE_CHECKING:
    import keras

_NAME = re.compile(r"\[(.*)\](?::(\d{1,9}))?")  # "[a tensor, another]:3", "[Builtin]:3"
# XNNPACK's words for what has weights, and LiteRT's of the file. A 1x1 convolution can become a
# fully connected layer; other operators are fused and split, so that nothing tells them.
_DELEGATED = re.compile(r"(?:Delegate/)?(Convolution|Deconvolution|Fully Connected) .*?(DWConv)?")
_IN_FILE = {
    ("Convolution", None): ("CONV_2D", "DEPTHWISE_CONV_2D"),
    ("Convolution", "DWConv"): ("DEPTHWISE_CONV_2D",),
    ("Deconvolution", None): ("TRANSPOSE_CONV",),
    ("Fully Connected", None): ("FULLY_CONNECTED", "CONV_2D"),
}
_WITH_WEIGHTS = {name for names in _IN_FILE.values() for name in names}


@dataclasses.dataclass(frozen=True)
class Profile(reporting.Report):
    """Times of a model's operators. Prints as a table.

    Attributes:
      model: the .tflite file's path where it ran; empty where the log does not say.
      run_ms: one run, in milliseconds, as the profiler adds it up.
      operators: in order of execution.
    """

    model: str
    run_ms: Amount
    operators: tuple[OperatorTime, ...]

    @property
    def layers(self) -> dict[str, float]:
        """Milliseconds of one run by Keras layer, of the layers that are known."""
        found: dict[str, float] = {}
        for operator in self.operators:
            if operator.layer:
                found[operator.layer] = found.get(operator.layer, 0.0) + operator.ms
        return found

    def beside(self, plan: Plan) -> str:
        """Lays out a plan with the measured time of each layer, or of the stack in its place.

        Args:
          plan: of the network that was profiled, or of the original of the student that was.

        Returns:
          A table: layer, stack, planned milliseconds before and after, measured milliseconds.

        Raises:
          tfdwd.Error: no operator belongs to a layer of the plan.

        Example:
          >>> print(profile.beside(plan))  # doctest: +SKIP
        """
        measured = [self._ms_of(layer.name) for layer in plan.layers]
        if all(ms is None for ms in measured):
            raise Error(
                "no operator of the profile belongs to a layer of the plan: read the profile with "
                "the .tflite file that was timed and the Keras model that it was made from"
            )
        rows = []
        for layer, ms in zip(plan.layers, measured, strict=True):
            times = (layer.ms_before, layer.ms_after, ms)
            cells = ("" if time is None else f"{time:.4f}" for time in times)
            rows.append((*reporting.layer_cells(layer)[:2], *cells))
        headers = ["layer", "stack", "planned ms before", "planned ms after", "measured ms"]
        total = sum(ms for ms in measured if ms is not None)
        last = f"measured: {total:.4f} ms in these layers of {self.run_ms:.4f} ms"
        return reporting.as_text([(headers, rows), last])

    def _ms_of(self, name: str) -> float | None:
        """Of a layer of a plan or its stack; None where nothing is known of it."""
        own = re.escape(name.rpartition("/")[2])
        # As `tfdwd.rebuild.expand` names them.
        parts = re.compile(rf"{own}(_reduce|_concat|_depthwise(_\d+)?)?")
        times = [ms for layer, ms in self.layers.items() if parts.fullmatch(layer)]
        return sum(times) if times else None

    def to_model_explorer(self) -> str:
        """The times as node data of Model Explorer: JSON to upload beside the .tflite file.

        Returns:
          ``{"results": {tensor: {"value": milliseconds}}}``; of an operator that writes several
          tensors, the first.

        Raises:
          tfdwd.Error: no operator's tensors are known.

        Source: google-ai-edge/model-explorer, node_data_builder.py.
        """
        results = {
            operator.tensors[0]: {"value": operator.ms}
            for operator in self.operators
            if operator.tensors
        }
        if not results:
            raise Error(
                "the profile names no tensors, by which Model Explorer finds its nodes: read it "
                "with the .tflite file that was timed"
            )
        return dumps({"results": results})

    def _parts(self) -> reporting.Parts:
        whole = sum(operator.ms for operator in self.operators) or 1.0
        rows = [
            (
                operator.type,
                operator.layer or ", ".join(operator.tensors).partition(";")[0],
                f"{operator.calls}",
                f"{operator.ms:.4f}",
                f"{100 * operator.ms / whole:.1f}",
            )
            for operator in self.operators
        ]
        headers = ["operator", "layer or tensor", "calls", "ms", "%"]
        lines = [f"{self.model or 'one run'}: {self.run_ms:.4f} ms"]
        if unknown := sum(not operator.tensors for operator in self.operators):
            lines.append(f"{unknown} operators of a delegate that could not be traced to the file")
        return [(headers, rows), *lines]


def read_profile(
    log: "str | os.PathLike[str]",
    tflite: lite.Source | None = None,
    model: "keras.Model | None" = None,
) -> Profile:
    """Reads the times of operators that a profiler printed.

    Args:
      log: path of the log, or its text: of TensorFlow's ``benchmark_model
        --enable_op_profiling=true``, or of LiteRT's ``benchmark_model --use_profiler=true``.
      tflite: the .tflite file that was timed, or its content. With it, XNNPACK's convolutions and
        fully connected layers, which have no names in the log, are traced to the file by their
        order, if all of them fit; and so is what LiteRT's log only numbers.
      model: the Keras model that the file was made from, which gives the names of the layers.

    Returns:
      The profile.

    Raises:
      tfdwd.Error: no such file, no table of operators in the log, several or a cut one, or the log
        names tensors that the .tflite file does not have.

    Example:
      >>> profile = read_profile("log.txt", "student.tflite", student)  # doctest: +SKIP
      >>> print(profile.layers["conv2d_1"])  # doctest: +SKIP
      0.113
    """
    is_text = isinstance(log, str) and "\n" in log
    text = log if is_text else files.read_bytes(log).decode("utf-8-sig", errors="replace")
    path, run_ms, operators = read_operators(str(text))
    written = () if tflite is None else lite.operators(tflite)
    tensors = [_named(operator, written) for operator in operators]
    for index, operator in _delegated(operators, tensors, written).items():
        tensors[index] = operator.writes
    all_names = [*(x.writes for x in written), *tensors]
    names = _layers([name for names in all_names for name in names], tflite, model)
    return Profile(
        path,
        run_ms,
        tuple(
            dataclasses.replace(
                operator, tensors=own, layer=next((names[x] for x in own if names.get(x)), "")
            )
            for operator, own in zip(operators, tensors, strict=True)
        ),
    )


def _named(operator: OperatorTime, written: Sequence[lite.Operator]) -> tuple[str, ...]:
    """The tensors that the log itself names, or numbers the operator of."""
    hit = _NAME.fullmatch(operator.name)
    if hit is None or hit[1] == "Delegate":
        return ()
    if hit[1] == "Builtin" and hit[2]:
        index = int(hit[2])
        known = index < len(written) and written[index].name == operator.type.partition("/")[0]
        return written[index].writes if known else ()
    names = tuple(name for name in hit[1].split(", ") if name)
    in_file = {name for one in written for name in one.writes}
    if written and (strange := [name for name in names if name not in in_file]):
        raise Error(
            f"the log's operator {operator.type} writes {strange[0]!r}, which is no tensor of the "
            ".tflite file: pass the file that was timed"
        )
    return names


def _delegated(
    operators: Sequence[OperatorTime],
    tensors: Sequence[tuple[str, ...]],
    written: Sequence[lite.Operator],
) -> dict[int, lite.Operator]:
    """Operators of the file for a delegate's rows, by their order; none unless all fit."""
    rows = {
        index: _IN_FILE.get((hit[1], hit[2]), ())
        for index, operator in enumerate(operators)
        if not tensors[index] and (hit := _DELEGATED.fullmatch(operator.type))
    }
    taken = {name for names in tensors for name in names}
    left = [x for x in written if x.name in _WITH_WEIGHTS and taken.isdisjoint(x.writes)]
    # Two parts of a graph in one row would have more calls than the others.
    if len(rows) != len(left) or len({operators[index].calls for index in rows}) > 1:
        return {}
    found = dict(zip(rows, left, strict=True))
    return found if all(found[index].name in names for index, names in rows.items()) else {}


def _layers(
    tensors: Sequence[str], tflite: lite.Source | None, model: "keras.Model | None"
) -> dict[str, str]:
    """The Keras layer of each tensor that has one."""
    if model is None:
        return {}
    from tfdwd import agreement

    given_out = {} if tflite is None else lite.Model(tflite).output_tensors()
    layers = {layer.name for layer in agreement.all_layers(model)}
    found = [*agreement.writers(model, tensors).items(), *given_out.items()]
    return {name: layer for name, layer in found if layer in layers}
