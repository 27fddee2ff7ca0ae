"""Passwords against bcrypt hashes: slow for who guesses, fast for who is known."""

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_COSTS = range(4, 19)
#: bcrypt reads no more of a password; Go's compares what is longer by its first 72 bytes too.
_LONGEST_PASSWORD_BYTES = 72
_CACHED_RIGHT, _CACHED_WRONG = 256, 1024
_MOST_WAITING = 16
# A guess costs its time in CPU once and nine times in waiting, so guessing takes a tenth of a core.
_REST_FACTOR, _LONGEST_REST_SECONDS = 9.0, 2.0
_LEAST_URGENT = 19


class BusyError(Exception):
    """Too many guesses are waiting to be checked; what is known already is still let in."""


def problem_of_hash(hashed: Any) -> str | None:
    """Why something is no password hash that can be checked; None where it is one."""
    match = _HASH.fullmatch(hashed) if isinstance(hashed, str) else None
    if match is None:
        return "must be a bcrypt hash ($2y$…), as htpasswd -nBC 10 writes"
    if int(match[1]) not in _COSTS:
        return f"must have a cost from {_COSTS.start} to {_COSTS.stop - 1}; 10 is usual"
    return None


class Passwords:
    """Checks passwords, one at a time in a thread, and remembers the answers.

    What is remembered is an HMAC under a key of this process, of the hash too: a password that
    is changed in the file counts at once. Answers of wrong guesses are remembered apart, so no
    number of guesses drives a right one out.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._checks: dict[bytes, asyncio.Task[bool]] = {}
        self._clients: set[str] = set()
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "bcrypt", initializer=_yield_to_others)

    def close(self) -> None:
        """Check no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def admit(
        self, user: bytes, password: bytes, hashes: Mapping[str, str], client: str
    ) -> bool:
        """Whether that is the user's password.

        A user who does not exist takes the time of one who does.

        Args:
            user: name, as UTF-8.
            password: what was given as theirs.
            hashes: by user name; at least one.
            client: address that asks; one guess of each is checked at a time.

        Raises:
            BusyError: it is not known yet, and others are to be checked first.
        """
        hashed, exists = self._hash_of(user, hashes)
        digest = self._digest(user, hashed.encode(), password, b"exists" if exists else b"")
        if digest in self._right:
            self._right.move_to_end(digest)
            return True
        if digest in self._wrong:
            self._wrong.move_to_end(digest)
            return False
        check = self._checks.get(digest)
        if check is None:
            if client in self._clients or len(self._clients) >= _MOST_WAITING:
                raise BusyError
            check = asyncio.ensure_future(self._check(password, hashed, exists=exists))
            self._begin(digest, check, client)
        return await asyncio.shield(check)

    def _begin(self, digest: bytes, check: asyncio.Task[bool], client: str) -> None:
        self._checks[digest] = check
        self._clients.add(client)

        def end(done: asyncio.Task[bool]) -> None:
            del self._checks[digest]
            self._clients.discard(client)
            if not done.cancelled() and done.exception() is None:
                self._remember(digest, right=done.result())

        check.add_done_callback(end)

    async def _check(self, password: bytes, hashed: str, *, exists: bool) -> bool:
        loop = asyncio.get_running_loop()
        async with self._turn:
            begun = time.monotonic()
            matches = await loop.run_in_executor(self._thread, _matches, password, hashed)
            if not (matches and exists):
                spent = time.monotonic() - begun
                await asyncio.sleep(min(_REST_FACTOR * spent, _LONGEST_REST_SECONDS))
            return matches and exists

    def _remember(self, digest: bytes, *, right: bool) -> None:
        cache, most = (self._right, _CACHED_RIGHT) if right else (self._wrong, _CACHED_WRONG)
        cache[digest] = None
        while len(cache) > most:
            cache.popitem(last=False)

    def _hash_of(self, user: bytes, hashes: Mapping[str, str]) -> tuple[str, bool]:
        """The user's hash; another user's where there is none, always the same one's."""
        own = hashes.get(user.decode("utf-8", "replace"))
        if own is not None:
            return own, True
        others = list(hashes.values())
        return others[int.from_bytes(self._digest(user), "big") % len(others)], False

    def _digest(self, *parts: bytes) -> bytes:
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, framed, hashlib.sha256)


def _matches(password: bytes, hashed: str) -> bool:
    """Whether bcrypt makes the hash of the password; it lets other threads run meanwhile."""
    import bcrypt  # noqa: PLC0415 (only where users are configured)

    try:
        return bcrypt.checkpw(password[:_LONGEST_PASSWORD_BYTES], hashed.encode())
    except ValueError:  # a password that bcrypt does not take, as one with a NUL in old versions
        return False


def _yield_to_others() -> None:
    """On one core, guesses are checked while nothing else is to be done."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_URGENT)
