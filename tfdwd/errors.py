"""The one error that tfdwd raises on purpose."""

import re

_LONGEST = 400  # characters


class Error(ValueError):
    """Something in the input is wrong: says what was expected, what came, and the way out."""


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks.

    Without what TensorFlow and Keras put around it, too: colours, where in a graph it was, the
    calls on the way ("in user code: File ..."), each with a line of source, and the arguments at
    the end. What others than tfdwd say is cut where it is long: Keras shows whole configurations.

    Example:
      >>> one_line(ValueError("expected 1,\\n  got 2"))
      'expected 1, got 2'
    """
    text = re.sub(r"\x1b\[\d*m|\{\{\w+ .*?\}\}|\[Op:.*", "", str(error)).strip()
    if text.startswith("in user code:"):
        text = re.sub(r"^ *File .*\n.*\n?", "", text.removeprefix("in user code:"), flags=re.M)
    told = re.split(r"^ *Arguments received by ", text, maxsplit=1, flags=re.MULTILINE)[0]
    line = " ".join((told.strip() or text).split())
    long = len(line) > _LONGEST and not isinstance(error, Error)
    return f"{line[:_LONGEST]} ..." if long else line
