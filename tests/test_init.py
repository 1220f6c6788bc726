import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import tfdwd


def test_every_public_name_is_there_and_listed():
    for name in tfdwd.__all__:
        assert getattr(tfdwd, name) is not None
        assert name in dir(tfdwd)


def test_type_checkers_see_the_same_names_of_the_same_modules():
    tree = ast.parse(Path(tfdwd.__file__).read_text())
    [block] = [
        node for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]  # fmt: skip
    seen = {(line.module, name.name, name.asname) for line in block.body for name in line.names}
    modules = {("tfdwd", name, name) for name in tfdwd._MODULES}
    names = {(f"tfdwd.{module}", name, name) for name, module in tfdwd._MODULE_OF.items()}
    assert seen == modules | names
    assert len(tfdwd.__all__) == len(seen)


def test_functions_do_not_hide_modules():
    assert callable(tfdwd.decompose) and callable(tfdwd.export) and callable(tfdwd.benchmark)
    assert tfdwd.costs.__name__ == "tfdwd.costs"
    assert issubclass(tfdwd.Error, ValueError)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tfdwd' has no attribute 'prune'"):
        _ = tfdwd.prune


def test_the_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("tfdwd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tfdwd is not installed here, only on the path")
    assert tfdwd.__version__ == installed


def modules_after(statement):
    code = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_tfdwd_imports_nothing_heavy():
    assert not modules_after("import tfdwd") & {"numpy", "tensorflow", "keras", "scipy"}


def test_the_benchmark_needs_neither_tensorflow_nor_keras_nor_absl():
    loaded = modules_after("import tfdwd; tfdwd.benchmark")
    assert "ai_edge_litert" in loaded
    assert not loaded & {"tensorflow", "keras", "absl", "scipy"}
