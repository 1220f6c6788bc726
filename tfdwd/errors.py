"""The one error that tfdwd raises on purpose."""


class Error(ValueError):
    """Something in the input is wrong: says what was expected, what came, and the way out."""
