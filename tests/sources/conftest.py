import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

STUB_SOURCE = Path(__file__).parents[1] / "nvml_stub" / "libnvidia-ml.c"


@pytest.fixture(scope="session")
def built_nvml_stub(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles the stand-in for NVIDIA's library; with ``OLD_DRIVER`` it lacks newer calls."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang) to build the NVML stub with")

    def build(*defines: str) -> Path:
        library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
        flags = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
        macros = [f"-D{name}" for name in defines]
        command = [compiler, *flags, *macros, "-o", str(library), str(STUB_SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        return library

    return build
