"""Who listens where: pure readers of ``/proc/net``."""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LISTEN = "0A"
_LEAF = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A TCP socket that listens.

    Attributes:
        address: that it is bound to; 0.0.0.0 or :: for any.
        port: its port.
        inode: its number, by which the processes that hold it are found.
    """

    address: Address
    port: int
    inode: int


def read_listeners(table: str) -> Iterator[Listener]:
    """The listening sockets of ``/proc/net/tcp`` or ``tcp6``."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        yield Listener(address=_address(address), port=int(port, 16), inode=int(fields[9]))


def read_local_addresses(fib_trie: str, if_inet6: str) -> frozenset[Address]:
    """A network's own addresses, from ``/proc/net/fib_trie`` and ``/proc/net/if_inet6``."""
    found: set[Address] = set()
    leaf = None
    for line in fib_trie.splitlines():
        match = _LEAF.search(line)
        if match is not None:
            leaf = match[1]
        elif leaf is not None and "/32 host LOCAL" in line:
            found.add(ipaddress.IPv4Address(leaf))
    for line in if_inet6.splitlines():
        found.add(ipaddress.IPv6Address(int(line.split()[0], 16)))
    return frozenset(found)


def answering(
    listeners: Iterable[Listener], wanted: frozenset[Address], port: int
) -> frozenset[int]:
    """Inodes of those sockets that answer at a port of one of some addresses of their network.

    A socket bound to the very address answers before one that is bound to any.
    """
    there = [listener for listener in listeners if listener.port == port]
    plain = {_plain(address) for address in wanted}
    bound = {one.inode for one in there if _plain(one.address) in plain}
    return frozenset(bound or {one.inode for one in there if _plain(one.address).is_unspecified})


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _address(digits: str) -> Address:
    # Words of four bytes, each as this machine's little-endian processor holds it.
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    return ipaddress.ip_address(b"".join(words))
