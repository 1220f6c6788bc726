"""Running tfdwd's scripts, in this process or in one of their own."""

import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfdwd.scripts import common

ROOT = Path(__file__).resolve().parent.parent


def line_of(name: str, *arguments: Any) -> str:
    """Runs a script in this process; returns its one line, or nothing where it succeeded.

    Fails where there are more lines, or where the line tells of an exception nobody foresaw.
    """
    script = importlib.import_module(f"tfdwd.scripts.{name}")
    script.FLAGS.unparse_flags()
    for flag in script.FLAGS:
        script.FLAGS[flag].unparse()
    command = f"tfdwd-{name.replace('_', '-')}"
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        status = common.status(
            script.main, script.FLAGS, script.__doc__, [command, *map(str, arguments)]
        )
    lines = [line for line in err.getvalue().splitlines() if line.startswith(f"{command}: ")]
    assert status == len(lines) <= 1, err.getvalue()
    assert not any("traceback" in line for line in lines), lines
    return lines[0] if lines else ""


def start(name: str, *arguments: Any, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts a script as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tfdwd.scripts.{name}", *map(str, arguments)],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip


def start_workers(count: int, arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Starts the same script as so many workers of one machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    hosts = [f"127.0.0.1:{own.getsockname()[1]}" for own in sockets]
    for own in sockets:
        own.close()
    started = []
    for index in range(count):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""},
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    return started
