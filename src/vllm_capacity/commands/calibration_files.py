"""Measured terms out of a file: a start-up log, or a profile that was saved."""

from vllm_capacity.calibrate import calibration_from
from vllm_capacity.errors import InputError
from vllm_capacity.observe.startup_log import read_startup_log
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.sources.log_file import read_log_lines
from vllm_capacity.sources.profile_file import load_profile


def read_calibration(path: str) -> Calibration:
    """The measured terms in a profile, or else in a log.

    Raises:
        InputError: the file is neither, or holds nothing measured.
    """
    if path != "-" and _starts_like_a_profile(path):
        return Calibration.from_json(path, load_profile(path))
    return calibration_from(read_startup_log(read_log_lines(path)), path)


def _starts_like_a_profile(path: str) -> bool:
    """A log that a container runtime wrapped in JSON also begins with a brace, on one line."""
    first = next(read_log_lines(path), "").strip()
    if first != "{":
        return False
    try:
        return isinstance(load_profile(path), dict)
    except InputError:
        return False
