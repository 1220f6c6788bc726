"""Python processes that import what this one does, and nothing from the current folder."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import importlib
getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])
"""


def run(module: str, function: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Calls a function of tfdwd in a new process.

    Python started with ``-c`` or ``-m`` looks for modules in the current folder first: a
    ``numpy.py`` that lies beside the user's model would be run. Isolated (``-I``) it does not; the
    paths of this process are handed over.

    Args:
      module: such as "tfdwd.benchmarking".
      function: its name there.
      arguments: strings, for the function.

    Returns:
      The process when it is over, with what it printed.

    Example:
      >>> run("builtins", "print", ["1", "2"]).stdout
      '1 2\\n'
    """
    package = str(Path(__file__).resolve().parent.parent)
    here = os.getcwd()
    paths = [path for path in sys.path if path and (path == package or not _same(path, here))]
    command = [sys.executable, "-I", "-c", _CODE, json.dumps([package, *paths]), module, function]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def _same(path: str, other: str) -> bool:
    return os.path.exists(path) and os.path.samefile(path, other)
