"""Nodes: network namespaces of this machine that take themselves for machines of their own.

The laws of this file:

* A node has a name (a namespace of its own says so), an address, a network of its own in which every port is
  free, and a boot id of its own: for aiotimer it is another machine. What it shares are the clocks; the
  processes, which each of the servers pins; and the files.
* Its namespaces last as long as a process of ours holds them, and that ends with its ``with``, or with us.
* Where such a namespace must not be made, the test is skipped, with the reason that was given.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fakes.clock import PATIENCE
from tests.fakes.places import short_directory
from tests.fakes.services import Session
from tests.fakes.worker import SpawnedWorker

NAMES = ("node1", "node2")
NETWORK = "10.21.0"
DEVICE = "eth0"
KINDS = ("--net", "--uts", "--mount")


class Node(NamedTuple):
    """A node.

    Attributes:
        name: its own.
        pid: of the process that holds its namespaces.
    """

    name: str
    pid: int

    def start(self, script: str, directory: Path, env: Mapping[str, str]) -> Session:
        """Start a script of bash on it, in a directory."""
        # Who enters a mount namespace is at its root.
        command = ["bash", "-c", f"cd '{directory}' && {script}"]
        return Session([*self._enter(), *command], directory, env)

    def run(self, script: str) -> None:
        """Run a script of sh on it."""
        subprocess.run([*self._enter(), "sh", "-ec", script], check=True, timeout=PATIENCE)

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", *KINDS]


@contextlib.contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Yield two nodes that a cable connects, the one with the lower address first."""
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install util-linux iproute2")
    with short_directory() as directory, contextlib.ExitStack() as stack:
        (directory / "hosts").write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{NETWORK}.{number} {name}\n" for number, name in enumerate(NAMES, 1))
        )
        nodes = [Node(name, stack.enter_context(_held()).pid) for name in NAMES]
        cable = f"ip link add {DEVICE} type veth peer name {DEVICE} netns {nodes[1].pid}"
        try:
            nodes[0].run(cable)
        except subprocess.CalledProcessError:
            pytest.skip("two network namespaces cannot be connected here (veth)")
        for number, node in enumerate(nodes, 1):
            boot_id = directory / f"boot-id-{number}"
            boot_id.write_text(f"{uuid.uuid4()}\n")
            node.run(
                f"hostname {node.name}; ip link set lo up; ip link set {DEVICE} up\n"
                f"ip address add {NETWORK}.{number}/24 dev {DEVICE}\n"
                f"mount --bind {directory}/hosts /etc/hosts\n"
                f"mount --bind {boot_id} /proc/sys/kernel/random/boot_id\n"
            )
        yield nodes


@contextlib.contextmanager
def _held() -> Iterator[SpawnedWorker]:
    """Hold new namespaces: by a process that ends when its standard input is closed."""
    held = subprocess.Popen(
        ["unshare", *KINDS, "sh", "-c", "echo held; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with SpawnedWorker(held) as holder:
        line = holder.wait_line("")
        if line != "held":
            pytest.skip(f"namespaces cannot be made here: {line}")
        yield holder
