"""Two hosts on one machine: network namespaces with names of their own, joined by a cable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("alpha", "beta")
CABLE = "peas0"
"""Name of the network interface, the same on both."""


class TwoHosts:
    """Two network namespaces; a context manager, which leaves nothing behind.

    Each host has an address, a name that both know, and its own loopback: what holds on to
    `localhost` does not reach the other. They share the machine's files.

    Args:
        folder: For the table of names.
    """

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        if lacking := [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]:
            pytest.skip(f"{', '.join(lacking)} not installed")
        self.spaces = [f"peas-{name}-{os.getpid()}" for name in NAMES]
        self.addresses = ["10.231.7.1", "10.231.7.2"]
        self.hosts = folder / "hosts"
        named = zip(["127.0.0.1", *self.addresses], ["localhost", *NAMES], strict=True)
        self.hosts.write_text("".join(f"{address} {name}\n" for address, name in named))

    def __enter__(self) -> "TwoHosts":
        try:
            for space in self.spaces:
                _ip("netns", "add", space)
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        first, second = self.spaces
        _ip(
            *("link", "add", CABLE, "netns", first, "type", "veth"),
            *("peer", "name", CABLE, "netns", second),
        )
        for space, address in zip(self.spaces, self.addresses, strict=True):
            _ip("-n", space, "address", "add", f"{address}/24", "dev", CABLE)
            for interface in ("lo", CABLE):
                _ip("-n", space, "link", "set", interface, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)

    def start(
        self, host: int, command: list[str], folder: Path, **variables: str
    ) -> subprocess.Popen[str]:
        """Starts a command on one of the hosts; it is told by which interface the others are."""
        named = f"hostname {NAMES[host]} && mount --bind '{self.hosts}' /etc/hosts && exec "
        space = ["ip", "netns", "exec", self.spaces[host], "unshare", "--uts", "--mount"]
        env = {
            **{name: value for name, value in os.environ.items() if "MASTER" not in name},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GLOO_SOCKET_IFNAME": CABLE,
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        return subprocess.Popen(
            [*space, "sh", "-c", named + '"$@"', "sh", *command],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def ended(processes: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str, str]]:
    """Status, output and errors of all processes; those that take too long are killed."""
    try:
        told = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, out, err) for process, (out, err) in zip(processes, told, strict=True)
    ]
