"""The vLLM release whose rules apply."""

import re
from dataclasses import dataclass
from typing import Self

_RELEASE = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,6}))?(?![\d])")


@dataclass(frozen=True, order=True, slots=True)
class VllmVersion:
    """A vLLM release, ordered; pre-release, post-release and build suffixes are dropped.

    >>> VllmVersion.parse("0.6.6.post1") < VllmVersion.parse("v0.32.0+cpu")
    True
    """

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """The version that ``text`` begins with.

        Raises:
            ValueError: ``text`` does not begin with ``major.minor``.
        """
        match = _RELEASE.match(text.strip())
        if match is None:
            raise ValueError(f"not a vLLM version such as 0.32.0: {text!r}")
        major, minor, patch = match.groups(default="0")
        return cls(int(major), int(minor), int(patch))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


#: The release that the rules were read from and the oracle was made with.
NEWEST_KNOWN = VllmVersion(0, 32, 0)
#: The oldest release whose V1 engine, defaults and budget are described here.
OLDEST_KNOWN = VllmVersion(0, 8, 5)
