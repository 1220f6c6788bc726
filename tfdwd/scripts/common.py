"""What the console commands share: the way in and out, and reading models and arrays."""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Sequence
from logging import WARNING, LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from absl import flags, logging

from tfdwd import workers
from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras


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
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        logging.get_absl_handler().python_handler.setStream(sys.stderr)
        logging.get_absl_handler().addFilter(_is_ours_or_serious)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable(sys.stderr)
    sys.exit(status(main, own_flags, doc, sys.argv))


def status(
    main: Callable[[], None], own_flags: flags.FlagValues, doc: str | None, argv: list[str]
) -> int:
    """Parses the flags, runs a command and turns what the user can mend into one line.

    Args:
      main: does the work; its flags are parsed by then.
      own_flags: the flags of the command.
      doc: the help text above the flags.
      argv: the command and its arguments.

    Returns:
      The exit status: 0, or 1 with one line on standard error.
    """
    command = Path(argv[0]).stem
    try:
        if {"--help", "-help", "-h", "--helpfull", "-helpfull"} & set(argv):
            print(_help(own_flags, doc))
            if any("helpfull" in argument for argument in argv):
                print(flags.FLAGS.get_help())
            return 0
        # absl's own flags (--verbosity and so on) first; what is left must be the command's.
        left = own_flags(flags.FLAGS(argv, known_only=True))
        if len(left) > 1:
            raise Error(f"expected flags only, got the argument {left[1]!r}; see --help")
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(logging.INFO)
        logging.use_absl_handler()
        main()
    except (Error, flags.Error, OSError) as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _is_ours_or_serious(record: LogRecord) -> bool:
    package = Path(__file__).parent.parent
    return record.levelno >= WARNING or Path(record.pathname).is_relative_to(package)


def _help(own_flags: flags.FlagValues, doc: str | None) -> str:
    lines = [(doc or "").strip(), "", "Flags:"]
    for name in own_flags:
        flag = own_flags[name]
        about = flag.help
        if flag.default is not None:
            about += f" (default: {flag.default})"
        lines.append(f"  --{name}")
        lines.append(flags.text_wrap(about, length=96, indent="      "))
    return "\n".join([*lines, "", "--helpfull lists the flags of the logging, too."])


def define_model(own_flags: flags.FlagValues) -> Callable[[], "keras.Model"]:
    """Defines --model; returns what loads the model that it names."""
    given = flags.DEFINE_string(
        "model", None, "the Keras model, a .keras or .h5 file", required=True, flag_values=own_flags
    )
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
        if given.value == "mirrored":
            import tensorflow as tf

            return tf.distribute.MirroredStrategy().scope()
        return contextlib.nullcontext()

    return scope


def define_array(
    own_flags: flags.FlagValues, name: str, help: str, *, required: bool = False
) -> Callable[[], np.ndarray | None]:
    """Defines --NAME and --NAME_key; returns what loads the array, None if none is named."""
    given = flags.DEFINE_string(
        name, None, f"{help}, a .npy or .npz file", required=required, flag_values=own_flags
    )
    key = flags.DEFINE_string(
        f"{name}_key", None, f"which array of a .npz file holds the {name}", flag_values=own_flags
    )
    return lambda: (
        None if given.value is None else load_array(given.value, key.value, f"{name}_key")
    )


def load_model(path: str) -> "keras.Model":
    """Loads a Keras model; see `tfdwd.bridge.load`."""
    from tfdwd import bridge  # and Keras, which takes seconds

    return bridge.load(path)


def load_text(path: str) -> str:
    """Reads a text file.

    Raises:
      tfdwd.Error: there is no such file, or it holds no text.
    """
    _check_file(path)
    try:
        return Path(path).read_text()
    except UnicodeDecodeError as error:
        raise Error(f"{path} holds no text") from error


def load_array(path: str, key: str | None, flag: str) -> np.ndarray:
    """Loads an array.

    Args:
      path: a .npy file, or a .npz file.
      key: which array of a .npz file; may be None where it holds only one.
      flag: the flag that gives `key`, for the error.

    Returns:
      The array.

    Raises:
      tfdwd.Error: no such file, another kind of file, or no such array in it.
    """
    _check_file(path)
    try:
        content = np.load(path)
    except (ValueError, OSError, EOFError) as error:
        raise Error(f"{path} is no .npy or .npz file of plain arrays") from error
    if isinstance(content, np.ndarray):
        if key is not None:
            raise Error(f"{path} holds one array without a name: leave --{flag} away")
        return content
    with content:
        if key is None and len(content.files) == 1:
            return content[content.files[0]]
        if key not in content.files:
            got = "no --" + flag if key is None else f"--{flag}={key}"
            raise Error(f"{path} holds the arrays {', '.join(content.files)}; got {got}")
        return content[key]


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        raise Error(f"no such file: {path}")
