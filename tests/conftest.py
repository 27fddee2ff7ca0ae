"""What all tests share."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # proc_tree and other things written for tests

# A busy machine is no fault of the code: laws are held by examples, not by a stopwatch.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

STUB_SOURCE = Path(__file__).parent / "nvml_stub" / "libnvidia-ml.c"

Script = Callable[[str], None]


@pytest.fixture(scope="session")
def built_nvml_stub(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles the stand-in for NVIDIA's library; with ``OLD_DRIVER`` it lacks newer calls.

    A process started with its folder as LD_LIBRARY_PATH and a script's path as NVML_STUB has
    a driver.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang) to build the NVML stub with")

    def build(*defines: str) -> Path:
        library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
        flags = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
        macros = [f"-D{name}" for name in defines]
        command = [compiler, *flags, *macros, "-o", str(library), str(STUB_SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        return library

    return build


@pytest.fixture(scope="session")
def nvml_stub(built_nvml_stub: Callable[..., Path]) -> ctypes.CDLL:
    """The stand-in, in this process.

    Loaded by path first, it is what the name libnvidia-ml.so.1 means from then on.
    """
    return ctypes.CDLL(str(built_nvml_stub()))


@pytest.fixture
def driver(nvml_stub: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Says what the driver of this process answers from now on; before that there is none."""
    file = tmp_path / "driver"
    monkeypatch.setenv("NVML_STUB", str(file))
    if ctypes.CDLL("libnvidia-ml.so.1")._handle != nvml_stub._handle:
        pytest.skip("this process has already loaded a real NVIDIA driver library")
    return lambda text: write_script(file, text)


def write_script(file: Path, text: str) -> None:
    """At once, for the stub may read it at any moment; surrogates stand for bytes as they are."""
    aside = file.with_suffix(".new")
    aside.write_bytes(text.encode(errors="surrogateescape"))
    aside.replace(file)
