"""LiteRT: opens, runs and reads .tflite files. The only file that knows `ai_edge_litert`."""

import collections
import contextlib
import importlib.metadata
import os
import sys
import tempfile
import types
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import compiled_model
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils

from tfdwd import files, memory
from tfdwd.errors import Error, one_line
from tfdwd.shapes import in_batches

Source = str | os.PathLike[str] | bytes

_BUILTIN_NAMES = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}


ACCELERATORS = ("cpu", "gpu", "npu")
_NO_NPU = "Failed to apply compiler plugins"  # LiteRT's words where nothing compiles for an NPU
_MISSING = -1  # stands for an optional input that an operator does without


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model: name in the signature, shape with the batch, dtype.

    A quantised one holds whole numbers that stand for (number - zero_point) * scale; `scale` is 0
    where it is not quantised. `sizes` is the shape with None where the file leaves a size open.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float = 0.0
    zero_point: int = 0
    sizes: tuple[int | None, ...] = ()

    def quantized(self, values: np.ndarray) -> np.ndarray:
        """Real values as the tensor holds them; beyond its range they saturate."""
        if not self.scale:
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        whole = np.round(values / np.float32(self.scale)) + self.zero_point
        return np.clip(whole, limits.min, limits.max).astype(self.dtype)

    def real(self, held: np.ndarray) -> np.ndarray:
        """What the tensor holds as real values, float32 if it is quantised."""
        if not self.scale:
            return held
        return (held.astype(np.float32) - self.zero_point) * np.float32(self.scale)


@dataclass(frozen=True)
class Operator:
    """One operator of a .tflite file.

    `name` is LiteRT's (``"CONV_2D"``), or the custom operator's own (``"FlexErf"``) if `custom`.
    A missing optional input has the shape None. `reads` and `writes` are the tensors' names.
    """

    name: str
    custom: bool
    inputs: tuple[tuple[int, ...] | None, ...]
    outputs: tuple[tuple[int, ...] | None, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


class Model:
    """A .tflite model, ready to run on the CPU (XNNPACK where LiteRT uses it).

    Args:
      source: path of a .tflite file, or its content.
      threads: at least 1.
      xnnpack: whether LiteRT may use XNNPACK, as it does by default.
      keep: keep the tensors inside for `interpreter.get_tensor`; runs without XNNPACK.

    Attributes:
      interpreter: LiteRT's own.
      inputs: the inputs in the order of the file.
      outputs: the outputs in the order of the file.
      fully_accelerated: None; see `CompiledModel`.

    Raises:
      tfdwd.Error: no such file, no .tflite model, or one that this runtime cannot run.

    Example:
      >>> model = Model("resnet8.tflite")
      >>> [scores] = model.run([np.zeros((1, 32, 32, 3))])
    """

    fully_accelerated: bool | None = None

    def __init__(
        self, source: Source, threads: int = 1, *, xnnpack: bool = True, keep: bool = False
    ) -> None:
        content = content_of(source)
        self._input_names, self._output_names = _signature(content, source)
        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self.interpreter = Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_preserve_all_tensors=keep,
                # A delegate does not show the tensors inside.
                experimental_op_resolver_type=OpResolverType.AUTO
                if xnnpack and not keep
                else plain,
            )
            self.interpreter.allocate_tensors()
            self._read_details()
        except (ValueError, RuntimeError) as error:
            raise Error(
                f"LiteRT {runtime_version()} cannot open {_name(source)}: {one_line(error)}"
            ) from error

    def _read_details(self) -> None:
        self._input_details = self.interpreter.get_input_details()
        self._output_details = self.interpreter.get_output_details()
        self.inputs = _tensors(self._input_details, self._input_names)
        self.outputs = _tensors(self._output_details, self._output_names)

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """Sets the shapes of the inputs, where the file leaves sizes open.

        Args:
          shapes: one for each of `Model.inputs`, with the batch.

        Raises:
          tfdwd.Error: the file cannot run at these shapes.
        """
        try:
            for details, shape in zip(self._input_details, shapes, strict=True):
                self.interpreter.resize_tensor_input(details["index"], list(shape), strict=True)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise Error(
                f"the .tflite model cannot run at inputs of {[tuple(s) for s in shapes]}: "
                f"{one_line(error)}"
            ) from error
        self._read_details()

    def load(self, inputs: Sequence[np.ndarray]) -> None:
        """Sets the inputs for the next `invoke`.

        Args:
          inputs: one array for each of `Model.inputs`, of its shape, of real values; they are cast
            to its dtype, or quantised.

        Raises:
          tfdwd.Error: another number of arrays, another shape, or fractions for whole numbers.
        """
        if len(inputs) != len(self.inputs):
            raise Error(f"the model has {len(self.inputs)} inputs, got {len(inputs)} arrays")
        for tensor, details, array in zip(self.inputs, self._input_details, inputs, strict=True):
            if array.shape != tensor.shape:
                raise Error(f"input {tensor.name!r}: expected {tensor.shape}, got {array.shape}")
            if not tensor.scale and not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
                raise Error(f"input {tensor.name!r}: expected {tensor.dtype}, got {array.dtype}")
            self.interpreter.set_tensor(details["index"], tensor.quantized(array))

    def invoke(self) -> None:
        """Runs the model on the inputs that `load` set: what a benchmark times.

        Raises:
          tfdwd.Error: an operator cannot run on these inputs, such as a division by zero in int8.
        """
        try:
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            reason = one_line(error)
            raise Error(f"LiteRT {runtime_version()} cannot run the model: {reason}") from error

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs the model.

        Args:
          inputs: as for `load`.

        Returns:
          One new array of real values for each of `Model.outputs`.

        Raises:
          tfdwd.Error: as for `load` and `invoke`.
        """
        self.load(inputs)
        self.invoke()
        return [
            self._values(tensor, details)
            for tensor, details in zip(self.outputs, self._output_details, strict=True)
        ]

    def activations(
        self, inputs: Sequence[np.ndarray], names: Container[str]
    ) -> dict[str, np.ndarray]:
        """Runs images and gives the tensors inside, of a model that was opened to keep them.

        Args:
          inputs: one array (images, ...) for each input, of real values.
          names: of the tensors.

        Returns:
          {name: real values, (images, ...)} of those that the model has and that are no scalars.
        """
        batch = self.inputs[0].shape[0]
        self.load([array[np.resize(np.arange(len(array)), batch)] for array in inputs])
        self.invoke()
        details = [
            detail
            for detail in self.interpreter.get_tensor_details()
            if detail["name"] in names and self._has_data(detail)
        ]
        tensors = _tensors(details, ())

        def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
            self.load(arrays)
            self.invoke()
            return [self._values(*pair) for pair in zip(tensors, details, strict=True)]

        found = in_batches(run, inputs, batch)
        return {
            tensor.name: values
            for tensor, values in zip(tensors, found, strict=True)
            if tensor.shape
        }

    def output_tensors(self) -> dict[str, str]:
        """The outputs' names in the signature, by the names of the tensors that hold them."""
        pairs = zip(self._output_details, self.outputs, strict=True)
        return {details["name"]: tensor.name for details, tensor in pairs}

    def _has_data(self, details: dict[str, Any]) -> bool:
        """Whether LiteRT gives a tensor out; not the empty ones, and not all of a loop's."""
        try:
            self.interpreter.get_tensor(details["index"])
        except ValueError:
            return False
        return True

    def _values(self, tensor: Tensor, details: dict[str, Any]) -> np.ndarray:
        if 0 in tensor.shape and not self._has_data(details):
            return np.zeros(tensor.shape, tensor.dtype)
        return tensor.real(self.interpreter.get_tensor(details["index"]))


class CompiledModel:
    """A .tflite model as LiteRT's CompiledModel runs it: on the CPU, a GPU or an NPU.

    With a GPU or an NPU, the CPU runs what the accelerator cannot. Not yet tried with a real GPU
    or NPU, only on a machine that has neither.

    Args:
      source: path of a .tflite file, or its content.
      threads: of the CPU, at least 1.
      accelerator: one of `ACCELERATORS`.

    Attributes:
      inputs: the inputs in the order of the signature.
      fully_accelerated: whether the accelerator runs every operator; of the CPU, whether XNNPACK
        does.

    Raises:
      tfdwd.Error: no such file, no .tflite model, one that this runtime cannot run, or there is no
        such accelerator here.

    Example:
      >>> model = CompiledModel("resnet8.tflite", 1, "cpu")
      >>> model.load([np.zeros((1, 32, 32, 3))])
      >>> model.invoke()
    """

    def __init__(self, source: Source, threads: int, accelerator: str) -> None:
        content = content_of(source)
        with _standard_error() as said:
            model, self.fully_accelerated = _compiled(content, source, threads, accelerator, said)
            self._held = types.SimpleNamespace(
                inputs=model.create_input_buffers(0),
                outputs=model.create_output_buffers(0),
                model=model,
                content=content,  # LiteRT reads the weights where they are
            )
            self.inputs = _signature_inputs(model, content, source)
        weakref.finalize(self, _release, self._held)

    def load(self, inputs: Sequence[np.ndarray]) -> None:
        """Sets the inputs for the next `invoke`.

        Args:
          inputs: one array for each of `inputs`, of its shape, of real values; they are cast to its
            dtype, or quantised.
        """
        with _standard_error():
            for tensor, buffer, array in zip(self.inputs, self._held.inputs, inputs, strict=True):
                buffer.write(tensor.quantized(array))

    def invoke(self) -> None:
        """Runs the model on the inputs that `load` set: what a benchmark times.

        Raises:
          tfdwd.Error: LiteRT cannot run it.
        """
        try:
            self._held.model.run_by_index(0, self._held.inputs, self._held.outputs)
        except RuntimeError as error:
            reason = one_line(error)
            raise Error(f"LiteRT {runtime_version()} cannot run the model: {reason}") from error


def _compiled(
    content: bytes, source: Source, threads: int, accelerator: str, said: Callable[[], str]
) -> tuple[compiled_model.CompiledModel, bool]:
    """LiteRT's model, and whether the accelerator has all of its operators."""
    cpu = compiled_model.HardwareAccelerator.CPU
    own = compiled_model.HardwareAccelerator[accelerator.upper()]

    def opened(allowed: compiled_model.HardwareAccelerator) -> compiled_model.CompiledModel:
        options = compiled_model.Options(
            hardware_accelerators=allowed,
            cpu_options=compiled_model.CpuOptions(num_threads=threads),
        )
        return compiled_model.CompiledModel.from_buffer(content, options=options)

    try:
        # Alone first: beside the CPU, LiteRT calls accelerated what XNNPACK runs, too.
        model = opened(own)
        return model, model.is_fully_accelerated()
    except RuntimeError as error:
        reason = one_line(error)
    if accelerator != "cpu":
        with contextlib.suppress(RuntimeError):
            model = opened(own | cpu)
            # Without an NPU, LiteRT says so and runs everything on the CPU.
            if _NO_NPU not in said():
                return model, False
            _release(types.SimpleNamespace(model=model))
        hints = [line for line in said().splitlines() if line.startswith(("ERROR", "WARNING"))]
        try:
            _release(types.SimpleNamespace(model=opened(cpu)))
        except RuntimeError as error:
            reason = one_line(error)
        else:
            raise Error(
                f"accelerator={accelerator!r}: expected one that LiteRT {runtime_version()} can "
                f"use, got none on this machine ({[reason, *hints][-1].partition('] ')[2]}); run "
                "this on a device that has one, or pass accelerator='cpu'"
            )
    raise Error(f"LiteRT {runtime_version()} cannot open {_name(source)}: {reason}")


def _release(held: types.SimpleNamespace) -> None:
    """Ends what LiteRT holds, without the lines that it prints at that."""
    with _standard_error():
        environment = held.model.environment
        held.__dict__.clear()
        environment.close()


@contextlib.contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
    """Keeps back what C++ code writes to standard error; gives a way to read it.

    LiteRT's Python interface has no level for its log, and some reasons are nowhere else.
    """
    with tempfile.TemporaryFile(buffering=0) as file:

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _signature_inputs(
    model: compiled_model.CompiledModel, content: bytes, source: Source
) -> tuple[Tensor, ...]:
    """The inputs of the first signature, in LiteRT's order."""
    signature = model.get_signature_by_index(0)
    details = model.get_input_tensor_details(signature["key"])
    with _damage(source):
        graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
        return tuple(
            Tensor(
                name,
                tuple(details[name]["shape"]),
                np.dtype(details[name]["dtype"]),
                *_quantization(graph.Tensors(details[name]["index"]).Quantization()),
            )
            for name in signature["inputs"]
        )


def _quantization(parameters: Any) -> tuple[float, int]:
    """Scale and zero point of a tensor; zeros where it is not quantised."""
    if parameters is None or not parameters.ScaleLength():
        return 0.0, 0
    return float(parameters.Scale(0)), int(parameters.ZeroPoint(0))


def operators(source: Source) -> list[Operator]:
    """Lists the operators of a .tflite model as the file holds them, before any delegate.

    Args:
      source: path of a .tflite file, or its content.

    Returns:
      The operators of all its subgraphs, in order of execution.

    Raises:
      tfdwd.Error: no such file, or no .tflite model.

    Example:
      >>> sorted({operator.name for operator in operators("resnet8.tflite")})
      ['ADD', 'AVERAGE_POOL_2D', 'CONV_2D', 'FULLY_CONNECTED', 'SOFTMAX']
    """
    content = content_of(source)
    with _damage(source):
        model = schema.Model.GetRootAs(content, 0)
        return [
            _operator(model, graph, graph.Operators(index))
            for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
            for index in range(graph.OperatorsLength())
        ]


def needed_runtime(source: Source) -> str:
    """Tells the oldest TensorFlow Lite version that has every operator of a .tflite model.

    Args:
      source: path of a .tflite file, or its content.

    Returns:
      What the converter wrote down, such as ``"1.5.0"``; empty if it wrote nothing.

    Raises:
      tfdwd.Error: no such file, or no .tflite model.

    Example:
      >>> needed_runtime("resnet8.tflite")
      '1.5.0'
    """
    content = content_of(source)
    with _damage(source):
        model = schema.Model.GetRootAs(content, 0)
        for entry in map(model.Metadata, range(model.MetadataLength())):
            if entry.Name() == b"min_runtime_version":
                return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).rstrip(b"\0").decode()
    return ""


def runtime_version() -> str:
    """Tells the version of the LiteRT that runs here, such as ``"2.3.0"``."""
    return importlib.metadata.version("ai-edge-litert")


def try_out(*paths: str) -> None:
    """Opens and runs .tflite files once, to see whether one takes the process down with it.

    LiteRT checks how a file is built, but not all that the numbers in it ask for. Meant for a
    process of its own, which gets half of the memory: it prints each path before, and exits with
    one line on standard error where a file is refused.

    Args:
      paths: of the files.
    """
    memory.limit_growth(0.5)
    for path in paths:
        print(path, flush=True)
        try:
            model = Model(path)
            model.run([x.real(np.zeros(x.shape, x.dtype)) for x in model.inputs])
        except Error as error:
            sys.exit(one_line(error))
        except MemoryError:
            sys.exit(f"{path} needs more memory than there is")


def in_order(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Puts the inputs and outputs of a .tflite model in a given order.

    The converter orders them as it likes; whoever runs the file by position, as most C++ and Java
    code does, needs them in the order of the model that was converted.

    Args:
      content: a .tflite model of one signature.
      inputs: the names of all its inputs, as in the signature, in the order wanted.
      outputs: the same for its outputs.

    Returns:
      The model, changed in nothing but the two orders.

    Example:
      >>> content = in_order(content, ["image", "mask"], ["boxes", "scores"])
    """
    changed = bytearray(content)
    model = schema.Model.GetRootAs(changed, 0)
    signature = model.SignatureDefs(0)
    graph = model.Subgraphs(signature.SubgraphIndex())
    # These arrays are views of `changed`: the indices are rewritten where they lie.
    index_of = dict(_entries(signature.Inputs, signature.InputsLength()))
    graph.InputsAsNumpy()[:] = [index_of[name] for name in inputs]
    index_of = dict(_entries(signature.Outputs, signature.OutputsLength()))
    graph.OutputsAsNumpy()[:] = [index_of[name] for name in outputs]
    return bytes(changed)


def each_output(content: bytes) -> Iterator[bytes]:
    """Takes a .tflite model apart: for each output the part that it needs, as a model of its own.

    Args:
      content: a .tflite model of one signature, without control flow.

    Yields:
      One model for each output, in their order, with all of the inputs.

    Example:
      >>> masks, boxes = each_output(content)
    """
    for number in range(schema.Model.GetRootAs(content, 0).Subgraphs(0).OutputsLength()):
        model = flatbuffer_utils.read_model_from_bytearray(content)
        [graph], [signature] = model.subgraphs, model.signatureDefs
        graph.outputs = graph.outputs[number : number + 1]
        signature.outputs = [
            entry for entry in signature.outputs if entry.tensorIndex == graph.outputs[0]
        ]
        needed = {*graph.inputs, *graph.outputs}
        operators = []
        for operator in reversed(graph.operators):
            if not needed.isdisjoint(operator.outputs):
                operators.append(operator)
                needed.update(operator.inputs)
        graph.operators = operators[::-1]
        _keep_tensors(model, sorted(needed - {_MISSING}))
        yield bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _keep_tensors(model: Any, kept: Sequence[int]) -> None:
    """Removes all other tensors of a model of one subgraph, and what they hold."""
    [graph], [signature] = model.subgraphs, model.signatureDefs
    place = {_MISSING: _MISSING, **{old: new for new, old in enumerate(kept)}}
    graph.tensors = [graph.tensors[index] for index in kept]
    for holder in (graph, *graph.operators):
        holder.inputs = [place[index] for index in holder.inputs]
        holder.outputs = [place[index] for index in holder.outputs]
    for entry in (*signature.inputs, *signature.outputs):
        entry.tensorIndex = place[entry.tensorIndex]
    used = {tensor.buffer for tensor in graph.tensors}
    used.update(entry.buffer for entry in model.metadata or ())
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def content_of(source: Source) -> bytes:
    """The bytes of a .tflite model, known by its file identifier."""
    if isinstance(source, bytes):
        content = source
    else:
        content = files.read_bytes(source)
    if content[4:8] != b"TFL3":
        raise Error(f"{_name(source)} is no .tflite model; make one with tfdwd.export")
    return content


def _name(source: Source) -> str:
    return "the content given" if isinstance(source, bytes) else os.fspath(source)


@contextlib.contextmanager
def _damage(source: Source) -> Iterator[None]:
    """Turns what the generated reader raises where offsets are wrong, which is anything."""
    try:
        yield
    except Exception as error:
        raise Error(f"{_name(source)} is a damaged .tflite model: {one_line(error)}") from error


def _signature(
    content: bytes, source: Source
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The names and tensor indices of the inputs and outputs; empty without a signature."""
    with _damage(source):
        model = schema.Model.GetRootAs(content, 0)
        if not model.SignatureDefsLength():
            return [], []
        signature = model.SignatureDefs(0)
        return (
            list(_entries(signature.Inputs, signature.InputsLength())),
            list(_entries(signature.Outputs, signature.OutputsLength())),
        )


def _entries(entry: Any, count: int) -> Iterator[tuple[str, int]]:
    """The (name, tensor index) pairs of one side of a signature."""
    for item in map(entry, range(count)):
        yield item.Name().decode(), item.TensorIndex()


def _tensors(
    details: Sequence[dict[str, Any]], entries: Iterable[tuple[str, int]]
) -> tuple[Tensor, ...]:
    """One side of a model, with the names of its signature where it has one."""
    names = collections.defaultdict(list)
    for name, index in entries:
        names[index].append(name)
    return tuple(
        Tensor(
            # A tensor that is given out twice has two names.
            names[item["index"]].pop(0) if names[item["index"]] else item["name"],
            tuple(map(int, item["shape"])),
            np.dtype(item["dtype"]),
            scale=item["quantization"][0],
            zero_point=item["quantization"][1],
            sizes=tuple(None if size < 0 else int(size) for size in item["shape_signature"]),
        )
        for item in details
    )


def _operator(model: Any, graph: Any, operator: Any) -> Operator:
    def shape(index: int) -> tuple[int, ...] | None:
        if index < 0:
            return None
        tensor = graph.Tensors(index)
        return tuple(tensor.Shape(axis) for axis in range(tensor.ShapeLength()))

    def names(index_of: Callable[[int], int], count: int) -> tuple[str, ...]:
        indices = [index_of(i) for i in range(count)]
        return tuple(graph.Tensors(index).Name().decode() for index in indices if index >= 0)

    code = model.OperatorCodes(operator.OpcodeIndex())
    # Files older than 2.4 keep the code in a field of 8 bits.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    custom = builtin == schema.BuiltinOperator.CUSTOM
    return Operator(
        name=code.CustomCode().decode() if custom else _BUILTIN_NAMES[builtin],
        custom=custom,
        inputs=tuple(shape(operator.Inputs(i)) for i in range(operator.InputsLength())),
        outputs=tuple(shape(operator.Outputs(i)) for i in range(operator.OutputsLength())),
        reads=names(operator.Inputs, operator.InputsLength()),
        writes=names(operator.Outputs, operator.OutputsLength()),
    )
