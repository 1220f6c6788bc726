"""The one error that tfdwd raises on purpose."""


class Error(ValueError):
    """Something in the input is wrong: says what was expected, what came, and the way out."""


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks.

    Example:
      >>> one_line(ValueError("expected 1,\\n  got 2"))
      'expected 1, got 2'
    """
    return " ".join(str(error).split())
