"""The wheel and the source distribution: what they hold, and that an installed wheel works."""

import configparser
import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfdwd

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "benchmarks" / "demo"
NAME = f"tfdwd-{tfdwd.__version__}"
BUILD = "import setuptools.build_meta as build; build.build_{kind}({folder!r})"


def run(*command: Any, cwd: Path) -> str:
    """Runs a program that knows nothing of this checkout; returns what it printed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy, since setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("sdist")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "*-output")
    shutil.copytree(ROOT, folder / "checkout", ignore=unwanted)
    code = BUILD.format(kind="sdist", folder=str(folder))
    run(sys.executable, "-c", code, cwd=folder / "checkout")
    return folder / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution alone."""
    folder = tmp_path_factory.mktemp("wheel")
    run("tar", "-xf", sdist, cwd=folder)
    code = BUILD.format(kind="wheel", folder=str(folder))
    run(sys.executable, "-c", code, cwd=folder / NAME)
    return folder / f"{NAME}-py3-none-any.whl"


def package() -> set[str]:
    """The files of tfdwd, as they are named in an archive."""
    files = [path for path in (ROOT / "tfdwd").rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    assert {"tfdwd/py.typed", "tfdwd/report/page.css", "tfdwd/report/page.js"} <= package()
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    own = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    assert f"{NAME}.dist-info/licenses/LICENSE" in own
    assert names - own == package()


def test_the_source_distribution_holds_what_the_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as content:
        files = {member.name.removeprefix(f"{NAME}/") for member in content if member.isfile()}
    top = {
        "CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "constraints.txt",
        "pyproject.toml", "setup.cfg",
    }  # fmt: skip
    assert {name for name in files if not name.startswith("tfdwd.egg-info/")} == top | package()


def test_the_metadata_is_that_of_the_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        metadata, entries = (
            content.read(f"{NAME}.dist-info/{name}").decode()
            for name in ("METADATA", "entry_points.txt")
        )
    fields = email.message_from_string(metadata)
    assert fields["Version"] == tfdwd.__version__
    assert fields["Requires-Python"] == "<3.13,>=3.10"
    assert fields["License"] == "Apache-2.0"
    assert metadata.endswith((ROOT / "README.md").read_text())
    assert set(fields.get_all("Provides-Extra", [])) == {"hub", "notebook", "qat", "test", "train"}
    needed = [text for text in fields.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert any(text.startswith("tensorflow<") for text in needed)
    assert not any(text.startswith("tensorflow-model-optimization") for text in needed)
    scripts = configparser.ConfigParser()
    scripts.read_string(entries)
    modules = [path.stem for path in (ROOT / "tfdwd/scripts").glob("[!_]*.py")]
    assert dict(scripts["console_scripts"]) == {
        f"tfdwd-{module.replace('_', '-')}": f"tfdwd.scripts.{module}:run"
        for module in modules
        if module != "common"
    }


def test_the_changelog_begins_with_this_version() -> None:
    titles = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if "## " in line]
    assert titles[0].startswith(f"## {tfdwd.__version__} (")


def check_installed(venv: Path, folder: Path, model: Path, *flags: str) -> None:
    """Runs what a user would run first: one import, then one command on images.npy."""
    code = "import tfdwd; print(tfdwd.__file__, tfdwd.__version__, *dir(tfdwd), sep='\\n')"
    file, version, *names = run(venv / "bin/python", "-c", code, cwd=folder).splitlines()
    assert Path(file).is_relative_to(venv) and version == tfdwd.__version__
    assert set(tfdwd.__all__) <= set(names)
    data = ["--images=images.npy", "--test=images.npy", "--folder=out", "--minutes=0.001"]
    command = [venv / "bin/tfdwd-compress", f"--model={model}", *data, *flags]
    assert run(*command, cwd=folder).splitlines()[-1] == "report: out/report.html"
    assert "<html" in (folder / "out/report.html").read_text()


def test_an_installed_wheel_compresses_a_network(wheel: Path, tmp_path: Path) -> None:
    """The wheel is installed for real, in a fresh environment.

    Stand-ins: what it depends on is not installed but read from the environment of the tests, and
    the network has two layers. `test_a_clean_installation_compresses_a_network` installs it all and
    takes the demo's network.
    """
    venv, work = tmp_path / "venv", tmp_path / "work"
    work.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    pip = [sys.executable, "-m", "pip", f"--python={venv}/bin/python", "install", "--quiet"]
    run(*pip, "--no-index", "--no-deps", wheel, cwd=tmp_path)
    [site] = venv.glob("lib/python*/site-packages")
    # Behind the wheel on the path; what is installed there in editable mode stays unknown.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    convolutions = [keras.layers.Conv2D(48, 3, activation="relu") for _ in range(2)]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5, activation="softmax")]
    keras.Sequential([keras.Input((24, 24, 8)), *convolutions, *head]).save(work / "model.keras")
    images = np.random.default_rng(0).normal(size=(32, 24, 24, 8)).astype(np.float32)
    np.save(work / "images.npy", images)
    check_installed(venv, work, work / "model.keras", "--latency=0.7")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_a_clean_installation_compresses_a_network(
    wheel: Path, tmp_path: Path, version: str
) -> None:
    """`pip install` of the wheel with all that it needs, from the package registry."""
    python = shutil.which(f"python{version}")
    # Of a version manager the command may be there and the Python not.
    works = [python or "python", "-c", "import ensurepip, venv"]
    if python is None or subprocess.run(works, capture_output=True, check=False).returncode:
        pytest.skip(f"no python{version} with venv on PATH")
    venv, work = tmp_path / "venv", tmp_path / "work"
    work.mkdir()
    run(python, "-m", "venv", venv, cwd=tmp_path)
    pip = [venv / "bin/python", "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", wheel, cwd=tmp_path)
    run(*pip, "check", cwd=tmp_path)
    with np.load(DEMO / "fashion_mnist.npz") as content:
        np.save(work / "images.npy", content["x_train"][:16])
    # A part of the convolutions, so that there is less to plan.
    flags = ["--latency=0.9", "--include=stage4_*"]
    check_installed(venv, work, DEMO / "fashion_shufflenet.keras", *flags)
    code = (
        "import keras, tfdwd\n"
        "tfdwd.quantize_aware(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))"
    )
    extra = [venv / "bin/python", "-c", code]
    failed = subprocess.run(extra, cwd=work, capture_output=True, text=True, check=False)
    assert failed.stderr.splitlines()[-1].endswith("pip install 'tfdwd[qat]'")
    run(*pip, "install", "--quiet", f"{wheel}[qat]", cwd=tmp_path)
    run(*extra, cwd=work)
