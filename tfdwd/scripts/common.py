"""What the console commands share: the way in and out, and reading models and arrays."""

import contextlib
import errno
import faulthandler
import itertools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from logging import WARNING, LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from absl import flags, logging

from tfdwd import arrays, children, files, reporting, workers
from tfdwd.errors import Error, one_line
from tfdwd.records import Record
from tfdwd.shapes import InputShape

if TYPE_CHECKING:
    import keras

RecordT = TypeVar("RecordT", bound=Record)

_PACKAGE = Path(__file__).resolve().parent.parent
_INTERRUPTED = 130  # as shells have it: 128 + SIGINT
_TERMINATED = 143  # 128 + SIGTERM
_NO_READER = 141  # 128 + SIGPIPE


def run(main: Callable[[], None], own_flags: flags.FlagValues, doc: str | None) -> NoReturn:
    """Runs a command as a process: `status`, with TensorFlow's chatter kept off the terminal.

    TensorFlow and LiteRT write to file descriptor 2 from C++, some of it whatever the settings.
    Unless the user set TF_CPP_MIN_LOG_LEVEL, that goes nowhere; Python's own standard error stays,
    with tfdwd's log and the warnings of the others.

    Args:
      main: does the work; its flags are parsed by then.
      own_flags: the flags of the command.
      doc: the help text above the flags.
    """
    # Either may have been closed by whoever started the command.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    handler = logging.get_absl_handler()
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        encoding = sys.stderr.encoding
        sys.stderr = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, encoding=encoding)
        handler.addFilter(_is_ours_or_serious)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for stream in (sys.stdout, sys.stderr):
        # A terminal need not know the characters of a name.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    handler.addFilter(_make_printable)
    handler.python_handler.stream = sys.stderr
    faulthandler.enable(sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)
    code = status(main, own_flags, doc, sys.argv)
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads it, or the disk is full: Python must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def status(
    main: Callable[[], None], own_flags: flags.FlagValues, doc: str | None, argv: list[str]
) -> int:
    """Parses the flags, checks the files that they name, runs a command; failures are one line.

    Args:
      main: does the work; its flags are parsed by then.
      own_flags: the flags of the command.
      doc: the help text above the flags.
      argv: the command and its arguments.

    Returns:
      The exit status: 0; 1 with one line on standard error; 130 if interrupted, 143 if terminated;
      141 if whoever reads standard output has gone.
    """
    command = Path(argv[0]).stem
    try:
        if {"--help", "-help", "-h", "--helpfull", "-helpfull"} & set(argv):
            print(_help(own_flags, doc))
            if any("helpfull" in argument for argument in argv):
                print(flags.FLAGS.get_help())
        else:
            _parse(own_flags, argv)
            main()
        sys.stdout.flush()
    except BrokenPipeError:
        return _NO_READER
    except _Terminated:
        print(f"{command}: terminated", file=sys.stderr)
        return _TERMINATED
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (Error, flags.Error) as error:
        print(f"{command}: {_printed(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # what is printed to, or /tmp
        text = f"cannot write: {error.strerror}; free some space" if full else _unforeseen(error)
        print(f"{command}: {text}", file=sys.stderr)
        return 1
    except Exception as error:  # nobody foresaw it, and the user still wants one line
        print(f"{command}: {_unforeseen(error)}", file=sys.stderr)
        return 1
    return 0


class _Terminated(KeyboardInterrupt):
    """The process is asked to end, which goes by the same way out as Ctrl-C."""


def _terminate(*_: Any) -> NoReturn:
    raise _Terminated


def _parse(own_flags: flags.FlagValues, argv: list[str]) -> None:
    # absl's own flags (--verbosity and so on) first; what is left must be the command's.
    left = own_flags(flags.FLAGS(argv, known_only=True))
    if len(left) > 1:
        raise Error(f"expected flags only, got the argument {left[1]!r}; see --help")
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    _check_inputs(own_flags)
    if "strategy" not in own_flags or own_flags["strategy"].value != "multiworker":
        _check_outputs(own_flags)


def _printed(error: BaseException) -> str:
    return reporting.printable(one_line(error))


def _unforeseen(error: Exception) -> str:
    """One line about an exception; the traceback goes to a file."""
    what = f"unexpected {type(error).__name__}: {_printed(error)[:300] or 'no message'}"
    steps = [
        f"{Path(frame.filename).stem}.{frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_PACKAGE)
        and Path(frame.filename) != Path(__file__).resolve()
    ]
    if steps:
        what += f" (in {' > '.join(dict.fromkeys([*steps[:2], steps[-1]]))})"
    try:
        descriptor, path = tempfile.mkstemp(".txt", "tfdwd-")
        with open(descriptor, "w", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError as full:
        return f"{what}; its traceback could not be saved: {full.strerror}"
    return f"{what}; its traceback is in {path}"


def _is_ours_or_serious(record: LogRecord) -> bool:
    return record.levelno >= WARNING or Path(record.pathname).is_relative_to(_PACKAGE)


def _make_printable(record: LogRecord) -> bool:
    record.msg, record.args = reporting.printable(record.getMessage()), ()
    return True


def _help(own_flags: flags.FlagValues, doc: str | None) -> str:
    lines = [(doc or "").strip(), "", "Flags:"]
    column = max(map(len, own_flags)) + len("  --  ")
    for name in own_flags:
        flag = own_flags[name]
        about = flag.help
        if flag.default is not None:
            about += f" (default: {flag.default})"
        text = flags.text_wrap(about, length=100, indent=" " * column)
        lines.append(f"  --{name}".ljust(column) + text[column:])
    lines += [
        "",
        "Exit status: 0 if all went well; 1 if not, with one line on standard error; 130 if",
        "interrupted, 143 if terminated. Files are written whole or not at all.",
        "",
        "--helpfull lists the flags of the logging, too.",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------------- files


class _Input(flags.Flag):
    """A flag that names a file to read."""

    def check(self) -> None:
        files.check_input(self.value)


class _Inputs(flags.MultiFlag):
    """A flag that may be given several times, each time for a file to read."""

    def check(self) -> None:
        for path in self.value:
            files.check_input(path)

    def paths(self) -> list[str]:
        return list(self.value)


class _NamedInputs(_Inputs):
    """As `_Inputs`, each value NAME=FILE or FILE; the script looks at the files itself."""

    def check(self) -> None:
        pass

    def paths(self) -> list[str]:
        return [value.rpartition("=")[2] for value in self.value]


class _Model(_Input):
    """A flag that names a model to read."""

    def check(self) -> None:
        if os.path.isdir(self.value):
            raise Error(
                f"{self.value} is a folder, not a .keras or .h5 file: SavedModel folders hold no "
                "layers; save the model with model.save('model.keras')"
            )
        super().check()


class _Folder(_Input):
    """A flag that names a folder that is there."""

    def check(self) -> None:
        if not os.path.isdir(self.value):
            raise Error(f"expected a folder that exists, got {self.value}")


class _Output(flags.Flag):
    """A flag that names a file to write."""

    suffix: str | None = None

    def check(self) -> None:
        files.check_output(self.value, self.suffix)


class _Cache(_Output):
    """A flag that names a file which is written only where that is possible."""

    def check(self) -> None:
        pass


def _define(kind: Any, own_flags: flags.FlagValues, name: str, help: str, required: bool) -> Any:
    flag = kind(flags.ArgumentParser(), flags.ArgumentSerializer(), name, None, help)
    return flags.DEFINE_flag(flag, own_flags, required=required)


def define_input(
    own_flags: flags.FlagValues, name: str, help: str, *, required: bool = False
) -> "flags.FlagHolder[str]":
    """Defines a flag for a file to read; `status` checks that it is there before work starts."""
    return _define(_Input, own_flags, name, help, required)


def define_inputs(own_flags: flags.FlagValues, name: str, help: str) -> Any:
    """Defines a flag for files to read, given once for each, as `define_input`."""
    flag = _Inputs(flags.ArgumentParser(), flags.ArgumentSerializer(), name, None, help)
    return flags.DEFINE_flag(flag, own_flags)


def define_model_file(
    own_flags: flags.FlagValues, name: str, help: str, *, required: bool = False
) -> "flags.FlagHolder[str]":
    """Defines a flag for a model to read, as `define_input`; `load_model` loads it."""
    return _define(_Model, own_flags, name, help, required)


def define_folder(own_flags: flags.FlagValues, name: str, help: str) -> "flags.FlagHolder[str]":
    """Defines a flag for a folder that must be there before work starts."""
    return _define(_Folder, own_flags, name, help, False)


def define_named_inputs(own_flags: flags.FlagValues, name: str, help: str) -> Any:
    """Defines a flag for files to read, each FILE or NAME=FILE, which no output may overwrite."""
    flag = _NamedInputs(flags.ArgumentParser(), flags.ArgumentSerializer(), name, None, help)
    return flags.DEFINE_flag(flag, own_flags)


def define_output(
    own_flags: flags.FlagValues,
    name: str,
    help: str,
    *,
    suffix: str | None = None,
    required: bool = False,
) -> "flags.FlagHolder[str]":
    """Defines a flag for a file to write; `status` checks ending, folder and rights before work."""
    holder = _define(_Output, own_flags, name, help, required)
    own_flags[name].suffix = suffix
    return holder


def define_cache(own_flags: flags.FlagValues, name: str, help: str) -> "flags.FlagHolder[str]":
    """Defines a flag for a file that may be written, but must not be one of the others."""
    return _define(_Cache, own_flags, name, help, False)


def _check_inputs(own_flags: flags.FlagValues) -> None:
    for flag in _given(own_flags, _Input, _Inputs):
        with _about(flag.name):
            flag.check()


def _check_outputs(own_flags: flags.FlagValues) -> None:
    """Checks that all outputs can be written, and that none overwrites another file named."""
    outputs, inputs = _given(own_flags, _Output), _given(own_flags, _Input, _Inputs)
    for flag in outputs:
        with _about(flag.name):
            flag.check()
    for one, two in [*itertools.combinations(outputs, 2), *itertools.product(outputs, inputs)]:
        others = two.paths() if isinstance(two, _Inputs) else [two.value]
        if any(_is_one_file(one.value, other) for other in others):
            raise Error(
                f"--{one.name} and --{two.name}: expected different files, got {one.value} twice"
            )


def _given(own_flags: flags.FlagValues, *kinds: type[flags.Flag]) -> list[Any]:
    """The flags of some kinds that have a value."""
    found = [own_flags[name] for name in own_flags]
    return [flag for flag in found if isinstance(flag, kinds) and flag.value is not None]


def _is_one_file(path: str, other: str) -> bool:
    real = Path(os.path.realpath(path))
    # A pipe, or /dev/null, takes any number of outputs.
    return real == Path(os.path.realpath(other)) and (
        os.path.isfile(real) or not os.path.exists(real)
    )


@contextlib.contextmanager
def _about(flag: str) -> Iterator[None]:
    """Puts a flag's name before errors."""
    try:
        yield
    except Error as error:
        raise Error(f"--{flag}: {error}") from error


# ---------------------------------------------------------------------- flags that many have


def define_model(own_flags: flags.FlagValues) -> Callable[[], "keras.Model"]:
    """Defines --model; returns what loads the model that it names."""
    about = "the Keras model, a .keras or .h5 file"
    given = define_model_file(own_flags, "model", about, required=True)
    return lambda: load_model(given.value)


def define_strategy(
    own_flags: flags.FlagValues, kinds: Sequence[str]
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Defines --strategy; returns what joins the workers, or gives the scope to load models in."""
    given = flags.DEFINE_enum(
        "strategy",
        "none",
        kinds,
        "multiworker: together with the processes that TF_CONFIG names, started by the same "
        "command" + ("; mirrored: on all GPUs of this machine" if "mirrored" in kinds else ""),
        flag_values=own_flags,
    )

    def scope() -> contextlib.AbstractContextManager[object]:
        if given.value == "multiworker":
            workers.join()
            if not workers.index():  # the first writes; others may have no such folder
                _check_outputs(own_flags)
        if given.value == "mirrored":
            import tensorflow as tf

            try:
                return tf.distribute.MirroredStrategy().scope()
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                config = os.environ.get("TF_CONFIG")
                if config is None:
                    raise
                raise Error(
                    f"--strategy=mirrored: TensorFlow cannot read TF_CONFIG, {config!r} "
                    f"({one_line(error)}); unset it, since it is for --strategy=multiworker"
                ) from error
        return contextlib.nullcontext()

    return scope


def define_array(
    own_flags: flags.FlagValues, name: str, help: str, *, required: bool = False
) -> Callable[[], np.ndarray | None]:
    """Defines --NAME and --NAME_key; returns what loads the array, None if none is named."""
    given = define_input(own_flags, name, f"{help}, a .npy or .npz file", required=required)
    key = flags.DEFINE_string(
        f"{name}_key", None, f"which array of a .npz file holds the {name}", flag_values=own_flags
    )

    def load() -> np.ndarray | None:
        with _about(f"{name}, --{name}_key"):
            return None if given.value is None else arrays.load(given.value, key.value)

    return load


def define_quantize(own_flags: flags.FlagValues) -> "flags.FlagHolder[str]":
    """Defines --quantize, as `tfdwd.export` takes it."""
    from tfdwd.conversion import QUANTIZATIONS

    return flags.DEFINE_enum(
        "quantize",
        "none",
        list(QUANTIZATIONS),
        "the precision to be deployed. none: float32; float16: its weights; dynamic: int8 weights; "
        "int8: weights and activations; int16x8: int8 weights, int16 activations",
        flag_values=own_flags,
    )


def define_threads(own_flags: flags.FlagValues) -> "flags.FlagHolder[int]":
    """Defines --threads."""
    return flags.DEFINE_integer(
        "threads", 1, "that LiteRT will be given", lower_bound=1, flag_values=own_flags
    )


def define_selection(own_flags: flags.FlagValues) -> tuple[Any, Any]:
    """Defines --include and --exclude, as `tfdwd.decompose` takes them."""
    include = flags.DEFINE_list(
        "include", None, "names or patterns of the only layers to replace", flag_values=own_flags
    )
    exclude = flags.DEFINE_list(
        "exclude", None, "names or patterns of layers to keep", flag_values=own_flags
    )
    return include, exclude


def define_labels(own_flags: flags.FlagValues, name: str, help: str) -> Callable[[], Any]:
    """Defines --NAME and --NAME_key; returns what loads the labels, None if none are named.

    Those of several outputs are a dict.
    """
    given = define_named_inputs(
        own_flags,
        name,
        f"{help}, a .npy or .npz file; of a model of several outputs OUTPUT=FILE for each that has "
        "labels",
    )
    key = flags.DEFINE_string(
        f"{name}_key", None, f"which array of a .npz file holds the {name}", flag_values=own_flags
    )

    def load() -> Any:
        paths = by_output(name, given.value or [])
        if isinstance(paths, dict):
            return {output: arrays.load(path, key.value) for output, path in paths.items()}
        return None if paths is None else arrays.load(paths, key.value)

    return load


def define_outputs(own_flags: flags.FlagValues) -> Callable[[], Any]:
    """Defines --outputs; returns what reads it, as `tfdwd.finetune` takes it."""
    given = flags.DEFINE_multi_string(
        "outputs",
        [],
        "what an output is, if not as found: probabilities, logits or values; of one of several "
        "outputs OUTPUT=KIND; may be repeated",
        flag_values=own_flags,
    )
    return lambda: by_output("outputs", given.value)


def by_output(flag: str, given: list[str]) -> Any:
    """{output: value} of OUTPUT=VALUE; one value alone is of all outputs; None if none is given."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [(text.partition("=")[0], text.partition("=")[2]) for text in given]
    if any("=" not in text for text in given) or len(dict(pairs)) < len(pairs):
        raise Error(f"--{flag}: expected OUTPUT=... once for each of several outputs, got {given}")
    return dict(pairs) or None


def define_planning(own_flags: flags.FlagValues, minutes: float) -> Callable[[], dict[str, Any]]:
    """Defines what `tfdwd.plan` and `tfdwd.tradeoff` take alike; returns what reads it."""
    model = define_model(own_flags)
    images = define_array(
        own_flags,
        "images",
        "calibration images (1,000 are plenty, labels are not needed)",
        required=True,
    )
    most = flags.DEFINE_integer(
        "max_images", 1024, "how many of the images to use, from the first", 1,
        flag_values=own_flags,
    )  # fmt: skip
    quantize = define_quantize(own_flags)
    threads = define_threads(own_flags)
    include, exclude = define_selection(own_flags)
    table = define_input(
        own_flags,
        "latency_table",
        "times from another device, a .json file of tfdwd-micro-models; nothing is timed here then",
    )
    cache = define_cache(
        own_flags,
        "cache",
        "the .json file that keeps times measured here, for other plans; by default "
        "~/.cache/tfdwd/latency.json, or in $XDG_CACHE_HOME",
    )
    shape = define_input_shape(own_flags)
    most_minutes = flags.DEFINE_float(
        "minutes", minutes, "after this time no other student is timed, decomposed and compared",
        lower_bound=0.0, flag_values=own_flags,
    )  # fmt: skip
    seed = flags.DEFINE_integer("seed", 0, "of the sampled positions", flag_values=own_flags)

    def given() -> dict[str, Any]:
        read: dict[str, Any] = {"input_shape": shape()}
        if table.value is not None:
            from tfdwd.latency import LatencyTable

            read["latency_table"] = load_record(LatencyTable, table.value)
        data = images()
        assert data is not None  # the flag is required
        others = {
            "quantize": quantize, "threads": threads, "include": include, "exclude": exclude,
            "cache": cache, "minutes": most_minutes, "seed": seed,
        }  # fmt: skip
        read.update({name: holder.value for name, holder in others.items()})
        return {"model": model(), "data": data[: most.value], **read}

    return given


def load_record(kind: type[RecordT], path: str) -> RecordT:
    """Reads a record from a .json file.

    Raises:
      tfdwd.Error: there is no such file, or it holds something else; the message has its name and
        the path of the wrong field.
    """
    text = files.read_text(path)
    try:
        return kind.from_json(text)
    except Error as error:
        raise Error(f"{path}: {error}") from error


def check_tflite(paths: Sequence[str]) -> None:
    """Checks in another process that LiteRT can run .tflite files; that takes half a second.

    Raises:
      tfdwd.Error: it cannot, or crashes.
    """
    if not paths:
        return
    for path in paths:
        files.check_input(path)
    done = children.run("tfdwd.lite", "try_out", paths)
    if done.returncode < 0:
        path = [paths[0], *done.stdout.splitlines()][-1]
        raise Error(
            f"{path} crashes LiteRT (signal {-done.returncode}): it is damaged, or needs more "
            "memory than there is; export it again"
        )
    if done.returncode:
        raise Error(done.stderr.splitlines()[-1])


def define_input_shape(own_flags: flags.FlagValues) -> Callable[[], InputShape | None]:
    """Defines --input_shape; returns what reads it, None if it was not given."""
    given = flags.DEFINE_multi_string(
        "input_shape",
        None,
        "the size to run at where the model leaves it open and no images tell it, such as "
        "128x128x3; for a model of several inputs NAME=128x128x3, once for each",
        flag_values=own_flags,
    )
    return lambda: None if given.value is None else input_shape(given.value)


def input_shape(texts: Sequence[str]) -> InputShape:
    """Reads shapes without the batch axis.

    Args:
      texts: each "128x128x3" or "NAME=128x128x3".

    Returns:
      One shape, a list of shapes, or a dict of them by name.

    Raises:
      tfdwd.Error: something else, a name twice, or some with a name and some without.
    """
    found = []
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if not all(size.isascii() and size.isdigit() and int(size) for size in sizes.split("x")):
            raise Error(
                f"--input_shape: expected sizes from 1 such as 128x128x3 or NAME=128x128x3, got "
                f"{text!r}"
            )
        found.append((name, tuple(map(int, sizes.split("x")))))
    names = [name for name, _ in found]
    if any(names):
        if not all(names) or len(set(names)) < len(names):
            raise Error(f"--input_shape: expected NAME=SIZES once for each input, got {texts}")
        return dict(found)
    return found[0][1] if len(found) == 1 else [shape for _, shape in found]


def load_model(path: str) -> "keras.Model":
    """Loads a Keras model; see `tfdwd.bridge.load`."""
    try:
        from tfdwd import bridge  # and Keras, which takes seconds
    except (ImportError, ValueError) as error:  # of a backend that is not there
        reason = one_line(error)
        raise Error(f"cannot import Keras: {reason}; set KERAS_BACKEND=tensorflow") from error

    return bridge.load(path)
