"""How much memory there is, and less."""

import math
import os
from pathlib import Path

import pytest

from tfdwd import children, memory


def test_the_smaller_of_machine_and_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "memory.max")
    assert memory.total() == machine
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.total() == machine
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.total() == 1_000_000
    monkeypatch.delattr(os, "sysconf")
    (tmp_path / "memory.max").unlink()
    assert memory.total() == math.inf


def test_beyond_the_limit_allocations_fail() -> None:
    code = (
        "from tfdwd import memory; memory.total = lambda: 2.0**28; memory.limit_growth(0.5); "
        "bytes({}); print('fits')"
    )
    assert children.run("builtins", "exec", [code.format(2**20)]).stdout == "fits\n"
    refused = children.run("builtins", "exec", [code.format(2**28)])
    assert refused.returncode == 1 and refused.stderr.strip().endswith("MemoryError")
