"""Makes names unique."""

from collections.abc import Iterable


def unique(names: Iterable[str]) -> list[str]:
    """Numbers the second and later of equal names.

    Example:
      >>> unique(["a", "b", "a"])
      ['a', 'b', 'a_1']
    """
    found: dict[str, None] = {}
    for name in names:
        free, number = name, 0
        while free in found:
            number += 1
            free = f"{name}_{number}"
        found[free] = None
    return list(found)
