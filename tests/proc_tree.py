"""A ``/proc`` of one's own making: the files of Linux, in Linux's format."""

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path

CONTAINER_A, CONTAINER_B = "a1" * 32, "b2" * 32
POD = "0a1b2c3d-1111-2222-3333-444455556666"
POD_SLICE = f"/kubepods.slice/kubepods-burstable-pod{POD.replace('-', '_')}.slice"
SERVE = ("/usr/bin/python3", "/usr/local/bin/vllm", "serve", "my/model")
EXPORTER_PID = 900
CONNECTED = 100_000  # added to a listener's inode, the number of a connection from it
ANY = "0.0.0.0"  # noqa: S104 (written, not bound)


class ProcTree:
    """Writes processes; what is not written cannot be read, as for want of permission."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sockets: dict[str, list[str]] = {}
        (root / "net").mkdir(parents=True)
        self.local_addresses("127.0.0.1")

    def host(self) -> "ProcTree":
        """The first PID namespace, with ourselves in it: the kernel's own threads show."""
        self.process(2, (), name="kthreadd")
        return self.exporter()

    def exporter(
        self,
        pid: int = EXPORTER_PID,
        *,
        environ: Mapping[str, str] | None = None,
        cgroup: str = "0::/",
        namespace_pids: Sequence[int] = (),
    ) -> "ProcTree":
        """Ourselves."""
        self.process(
            pid,
            ("vllm-capacity",),
            environ=environ or {},
            cgroup=cgroup,
            namespace_pids=namespace_pids,
        )
        (self.root / "self").symlink_to(str(pid))
        return self

    def process(
        self,
        pid: int,
        words: Sequence[str],
        *,
        parent: int = 0,
        name: str = "python3",
        state: str = "S",
        start: int | None = None,
        environ: Mapping[str, str] | None = None,
        cgroup: str = "0::/user.slice/user-1000.slice/session-1.scope",
        namespace_pids: Sequence[int] = (),
        gpu: bool = False,
        sockets: Sequence[int] = (),
        private: bool = False,
    ) -> "ProcTree":
        """One process; of a private one, another user's, descriptors and environment are hidden."""
        place = self.root / str(pid)
        place.mkdir(exist_ok=True)
        ticks = pid * 10 if start is None else start
        (place / "stat").write_text(
            f"{pid} ({name}) {state} {parent} 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0 0\n"
        )
        numbers = "\t".join(map(str, namespace_pids or (pid,)))
        (place / "status").write_text(f"Name:\t{name}\nPid:\t{pid}\nNSpid:\t{numbers}\n")
        (place / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
        (place / "cgroup").write_text(cgroup + "\n")
        if not (place / "net").exists():
            (place / "net").symlink_to("../net")
        if not private:
            self._open(place, environ or {"HOME": "/root"}, gpu=gpu, sockets=sockets)
        return self

    def _open(
        self, place: Path, environ: Mapping[str, str], *, gpu: bool, sockets: Sequence[int]
    ) -> None:
        items = (f"{name}={value}".encode() + b"\0" for name, value in environ.items())
        (place / "environ").write_bytes(b"".join(items))
        (place / "fd").mkdir(exist_ok=True)
        devices = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0"] if gpu else []
        links = ["/dev/null", *devices, *(f"socket:[{inode}]" for inode in sockets)]
        for number, link in enumerate(links):
            (place / "fd" / str(number)).symlink_to(link)

    def network_of(self, pid: int, *addresses: str) -> str:
        """Give a process a network namespace of its own; its name for ``listen``."""
        net = self.root / str(pid) / "net"
        net.unlink()
        net.mkdir()
        self.local_addresses(*addresses, net=f"{pid}/net")
        return f"{pid}/net"

    def local_addresses(self, *addresses: str, net: str = "net") -> None:
        leaves = (f"        |-- {address}\n           /32 host LOCAL\n" for address in addresses)
        (self.root / net / "fib_trie").write_text(
            "Local:\n  +-- 0.0.0.0/0 3 0 5\n" + "".join(leaves)
        )

    def listen(self, address: str, port: int, inode: int, *, net: str = "net") -> "ProcTree":
        """A listening socket, and one that is connected from the same port."""
        packed = ipaddress.ip_address(address).packed
        words = (packed[i : i + 4][::-1].hex().upper() for i in range(0, len(packed), 4))
        table = f"{net}/tcp" if len(packed) == 4 else f"{net}/tcp6"
        rows = self._sockets.setdefault(table, ["  sl  local_address rem_address   st"])
        local = f"{''.join(words)}:{port:04X}"
        for state, number in (("0A", inode), ("01", inode + CONNECTED)):
            rows.append(
                f"{len(rows):4}: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 "
                f"00000000  1000        0 {number} 1 0000000000000000 100 0 0 10 0"
            )
        (self.root / table).write_text("\n".join(rows) + "\n")
        return self

    def gone(self, pid: int) -> None:
        """A process ends."""
        place = self.root / str(pid)
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        place.rmdir()
