"""A Python for 64-bit ARM that runs on an x86 machine, under qemu's user emulation.

    python benchmarks/arm/emulator.py        (half a minute; prints the commands it made)

Needs Debian 12 on x86 with its apt-get and dpkg, but no root: Debian's packages for arm64 (Python
and the C library) and qemu are downloaded and unpacked into a folder, and the aarch64 wheels of
NumPy, LiteRT, absl-py, msgspec and OpenCV, of the versions in constraints.txt, beside them. The
commands left there are used like any other Python:

    build/arm64/cortex-a76 -m tfdwd.scripts.benchmark --help

What runs under it computes as on ARM; how long it takes says nothing about ARM.
"""

import pathlib
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "arm64"

_DEBIAN = ["python3-minimal", "libpython3-stdlib", "libstdc++6", "qemu-user-static:amd64"]
_WHEELS = ["numpy", "ai-edge-litert", "absl-py", "msgspec", "opencv-python-headless"]
_PLATFORMS = ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"]


@dataclass(frozen=True)
class Processor:
    """What is emulated.

    Attributes:
      name: for tables and commands.
      qemu: qemu's name of it.
      part: Arm's number of it in /proc/cpuinfo, by which LiteRT chooses some of its code.
      features: the instructions that it has beyond the first ARMv8, as /proc/cpuinfo lists them.
    """

    name: str
    qemu: str
    part: int
    features: str


_ARMV8_2 = "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
PROCESSORS = [
    # A Raspberry Pi 3 and the small cores of older phones: no instructions for 8-bit products.
    Processor("cortex-a53", "cortex-a53", 0xD03, ""),
    # A Raspberry Pi 5: dot products of 8 bits.
    Processor(
        "cortex-a76", "cortex-a76", 0xD0B, "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
    ),
    # Newer phones: matrix products of 8 bits (i8mm) and SVE. Told to LiteRT as a Cortex-X2. Without
    # SME, whose 8-bit products qemu 7.2 gets wrong (10.0 gets them right).
    Processor(
        "armv9",
        "max,sme=off",
        0xD48,
        "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp sve asimdfhm sve2 svei8mm i8mm bf16",
    ),
]


def prepare(folder: pathlib.Path = FOLDER) -> dict[str, pathlib.Path]:
    """Makes the emulated Pythons, unless they are there.

    Args:
      folder: where to; it appears when all is in it.

    Returns:
      {processor's name: the command}. A command takes the arguments of a Python, and adds
      PYTHONPATH to its own packages.

    Raises:
      SystemExit: another machine than x86 Debian, or a download that failed.
    """
    if not folder.is_dir():
        if platform.machine() != "x86_64" or not shutil.which("apt-get"):
            raise SystemExit(f"expected Debian on x86_64, got {platform.platform()}")
        unfinished = folder.with_name(f"{folder.name}-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _unpack_debian(unfinished)
        _unpack_wheels(unfinished)
        for processor in PROCESSORS:
            _write_command(unfinished, processor)
        unfinished.rename(folder)
    return {processor.name: folder / processor.name for processor in PROCESSORS}


def _run(*command: object, **options: object) -> subprocess.CompletedProcess:
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False, **options)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-1000:]
        raise SystemExit(f"{command[0]} failed, nothing was made:\n{words}")
    return done


def _unpack_debian(folder: pathlib.Path) -> None:
    """Fills `root` with arm64's Python, and takes qemu's emulator out of its package."""
    apt = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()  # of a machine where nothing is installed
    options = [
        "APT::Architecture=arm64",
        "APT::Architectures=arm64,amd64",
        f"Dir::State={apt}/state",
        f"Dir::State::status={apt}/status",
        f"Dir::Cache={apt}/cache",
        "APT::Sandbox::User=",
        "Debug::NoLocking=1",
        "APT::Install-Recommends=0",
    ]
    get = ["apt-get", "--yes", "--quiet", *(f"--option={option}" for option in options)]
    _run(*get, "update")
    _run(*get, "install", "--download-only", *_DEBIAN)
    for package in sorted((apt / "cache" / "archives").glob("*_a*64.deb")):
        if package.name.startswith("qemu"):
            tar = _run("dpkg-deb", "--fsys-tarfile", package).stdout
            emulator = "./usr/bin/qemu-aarch64-static"
            _run("tar", "-x", "-C", folder, "--strip-components=3", emulator, input=tar)
        elif package.name.endswith("_arm64.deb"):
            _run("dpkg", "-x", package, folder / "root")
    shutil.rmtree(apt)


def _unpack_wheels(folder: pathlib.Path) -> None:
    python = (folder / "root" / "usr" / "bin" / "python3").readlink().name
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--target", folder / "site", "--only-binary=:all:", "--no-compile"),
        *("--constraint", ROOT / "constraints.txt", "--python-version", python[len("python") :]),
        *(f"--platform={name}" for name in _PLATFORMS),
        *_WHEELS,
    )


def _write_command(folder: pathlib.Path, processor: Processor) -> None:
    """A script that runs Python on this processor, and the files under / that it sees."""
    # LiteRT reads what the processor is from files that here would tell of the x86 one, and ends in
    # a segmentation fault. qemu takes files under -L for those under /.
    seen = folder / f"{processor.name}-root"
    (seen / "proc").mkdir(parents=True)
    (seen / "proc" / "cpuinfo").write_text(
        f"processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid {processor.features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        f"CPU part\t: {processor.part:#x}\nCPU revision\t: 1\n\n"
    )
    cpu = seen / "sys" / "devices" / "system" / "cpu"
    (cpu / "cpu0" / "topology").mkdir(parents=True)
    for name in ("possible", "present", "cpu0/topology/cluster_cpus_list"):
        (cpu / name).write_text("0\n")
    for name in ("lib", "usr"):
        (seen / name).symlink_to(f"../root/{name}")
    command = folder / processor.name
    command.write_text(
        "#!/bin/sh\n"
        'here=$(dirname "$(readlink -f "$0")")\n'
        "export PYTHONHOME=$here/root/usr PYTHONPATH=$here/site${PYTHONPATH:+:$PYTHONPATH}\n"
        # -0: sys.executable is this script, so that Python can start itself anew.
        f'exec "$here/qemu-aarch64-static" -cpu {processor.qemu} -L "$here/{seen.name}" '
        '-0 "$here/${0##*/}" "$here/root/usr/bin/python3" "$@"\n'
    )
    command.chmod(0o755)


if __name__ == "__main__":
    print(*prepare().values(), sep="\n")
