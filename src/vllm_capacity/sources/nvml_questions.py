"""NVML's answers and failures: which leave a field absent, which end a reading, what each means."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_CGROUP = (
    "a container loses its GPUs so when its cgroup is written anew, as by "
    "`systemctl daemon-reload`: restart it"
)


class Questions:
    """Asks NVML about one GPU; what it does not answer is absent, and named if it should have.

    Args:
        nvml: the module ``pynvml``.
        subject: whom is asked, as in ``GPU 0``.
        faults: where to keep them; a list of its own by default.

    Attributes:
        faults: one line for each question that failed for no good reason.
    """

    def __init__(self, nvml: ModuleType, subject: str, faults: list[str] | None = None) -> None:
        self.nvml, self._subject = nvml, subject
        self.faults: list[str] = [] if faults is None else faults

    def about(self, part: str) -> "Questions":
        """The same about a part of the subject; its faults are faults of the whole."""
        return Questions(self.nvml, f"{self._subject}: {part}", self.faults)

    def ask(self, what: str, question: Callable[[], T]) -> T | None:
        """The answer, or None where this GPU, driver or permission does not give it.

        Raises:
            NVMLError: the GPU or NVML itself is gone: whatever else it says cannot be used.
        """
        try:
            return question()
        except self.nvml.NVMLError as error:
            if is_lost(self.nvml, error):
                raise
            if error.value not in _unsupported(self.nvml):
                self.faults.append(f"{self._subject}: {what}: {sentence(self.nvml, error)}")
            return None

    def text(self, what: str, question: Callable[[], str]) -> str | None:
        """The same for a string; one that is no UTF-8 is shown as far as it is."""
        return self.ask(what, lambda: _readable(question))


def _readable(question: Callable[[], str]) -> str:
    try:
        return question()
    except UnicodeDecodeError as error:  # pynvml decodes what the driver wrote
        return bytes(error.object).decode(errors="replace")


def is_lost(nvml: ModuleType, error: Any) -> bool:
    """Whether a GPU or NVML itself is gone, so that handles and session are worth nothing."""
    return error.value in (
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_GPU_IS_LOST,
        nvml.NVML_ERROR_RESET_REQUIRED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def _unsupported(nvml: ModuleType) -> tuple[int, ...]:
    """Codes that say no more than that this GPU or driver does not have that."""
    return (
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    )


def sentence(nvml: ModuleType, error: Any) -> str:
    """What happened and what to do, with NVML's number of it."""
    advice = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
            "no NVIDIA driver library (libnvidia-ml.so.1) here, so GPU memory is not watched"
        ),
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: (
            "the NVIDIA kernel driver is not loaded; load it, or give the container the GPU"
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (
            "no permission; let this user open /dev/nvidia* (group or container devices)"
        ),
        nvml.NVML_ERROR_OPERATING_SYSTEM: f"the operating system blocks the GPU; {_CGROUP}",
        nvml.NVML_ERROR_UNKNOWN: f"Unknown Error; {_CGROUP}",
        nvml.NVML_ERROR_NOT_FOUND: "the device has vanished",
        nvml.NVML_ERROR_GPU_IS_LOST: (
            "the GPU has fallen off the bus; see the kernel log for Xid 79, then reset or reboot"
        ),
        nvml.NVML_ERROR_RESET_REQUIRED: "the GPU must be reset before it can be read",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "the driver was upgraded but its library here is the old one; "
            "restart this program, or the machine if that does not help"
        ),
        nvml.NVML_ERROR_UNINITIALIZED: "NVML was shut down; it is started again at the next read",
    }
    return f"{advice.get(error.value) or _own_words(error)} (NVML error {error.value})"


def _own_words(error: Any) -> str:
    """What pynvml, or for a code that it does not know the driver, calls the error."""
    try:
        return str(error)
    except UnicodeDecodeError:
        return "an error whose name is unreadable"
