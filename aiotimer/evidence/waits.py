"""A probe of ``/proc``: what the threads of a process wait for, by the system calls that they are in.

The laws of this file:

* Nothing is sent to the process, and nothing of it is stopped. No file of it is asked for anything if it may
  be on another machine.
* All of it is bounded: descriptors, children, lines of tables. What is not found by then is not known.
* What is read first cannot block; the memory of a process may wait for a lock of it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._linux import procfs
from . import calls
from .calls import Call, Thing, Wait
from .reasons import child_in_words

_TABLES = ("tcp", "unix", "tcp6", "udp", "udp6")

_MOST_LINKS = 4096
"""Descriptors of children that are looked at for the other end of a pipe."""

_MOST_OWN = 1024
_LONGEST_PATH = 256

_NUMBERED = re.compile(r"(socket|pipe):\[(\d+)\]")
_TERMINAL = re.compile(r"/dev/(pts/\d+|tty.*|console)")

_SQLITE = (range(0x40000000, 0x40000200), range(120, 128))
"""Bytes of a file that only SQLite locks: of a database, and of the memory that a write-ahead log shares
(https://www.sqlite.org/fileformat2.html#the_lock_byte_page, https://www.sqlite.org/walformat.html)."""


def of_threads(
    pid: int, seen: Mapping[int, Call], children: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, Wait]]:
    """Find out what threads wait for; yield the number of each, and that.

    Args:
        pid: the process.
        seen: by thread, the call that it is in.
        children: of the process, as ``evidence/proc.py`` reads them.
    """
    process = _Process(pid, children)
    polled = {tid: process.descriptors(call) for tid, call in seen.items()}
    process.find_sockets({one for some in polled.values() for one in some})
    for tid, call in seen.items():
        with contextlib.suppress(OSError, ValueError):  # it has closed that, or it is not shown
            yield tid, process.wait_of(call, polled[tid])


class _Process:
    """A process, and what has been read of it so far."""

    def __init__(self, pid: int, children: Sequence[dict[str, Any]]) -> None:
        self._pid = pid
        self._children = children
        self._sockets: dict[str, Thing] = {}
        self._room = _MOST_LINKS

    def descriptors(self, call: Call) -> list[int]:
        """Return those that a call waits for; none if that is not known."""
        pid, most = self._pid, calls.MOST_POLLED
        with contextlib.suppress(OSError, ValueError, OverflowError):
            if call.polls is not None:
                at, size = call.polls
                return calls.polled(procfs.memory_of(pid, at, min(size, 8 * most)))
            if call.selects is not None:
                places, size = call.selects
                return calls.selected(procfs.memory_of(pid, at, size) for at in places)[:most]
            if call.epoll is not None:
                return procfs.polled_by(pid, call.epoll)[:most]
            return [] if call.descriptor is None else [call.descriptor]
        return []

    def find_sockets(self, descriptors: set[int]) -> None:
        """Look up which of descriptors are sockets, and where their other ends are."""
        wanted = set()
        for one in descriptors:
            with contextlib.suppress(OSError):
                found = _NUMBERED.fullmatch(procfs.link_of(self._pid, one))
                if found and found[1] == "socket":
                    wanted.add(found[2])
        for table in _TABLES:
            number = 6 if table == "unix" else 9
            if wanted <= self._sockets.keys():
                return
            with contextlib.suppress(OSError):
                for fields in procfs.sockets_of(self._pid, table):
                    inode = fields[number].split()[0] if len(fields) > number else ""
                    if inode in wanted:
                        with contextlib.suppress(ValueError):
                            self._sockets[inode] = calls.socket_of(table, fields)
                        if wanted <= self._sockets.keys():
                            return

    def wait_of(self, call: Call, descriptors: Sequence[int]) -> Wait:
        """Return what a thread that is in a call waits for."""
        wanted = call.child
        if call.pidfd is not None:
            wanted = int(procfs.descriptor_info(self._pid, call.pidfd)["Pid"])
        if wanted is not None:
            return calls.of_children(call, self._children, wanted)
        if call.name in ("flock", "fcntl"):
            return self._lock(call, descriptors[0]) if descriptors else Wait()
        if call.is_c_sleep and (holder := self._sqlite()):
            return calls.of_call(call)._replace(holder=holder)
        path = ""
        if call.opens:
            path = _text(procfs.memory_of(self._pid, call.opens, _LONGEST_PATH).partition(b"\0")[0])
        return calls.of_call(call, [self._thing(one) for one in descriptors], path)

    def _thing(self, descriptor: int) -> Thing:
        """Return what is behind a descriptor."""
        link = procfs.link_of(self._pid, descriptor)
        numbered = _NUMBERED.fullmatch(link)
        if numbered is not None and numbered[1] == "socket":
            return self._sockets.get(numbered[2], Thing("socket"))
        if numbered is not None:
            return self._pipe("pipe", "", descriptor, link)
        if link.startswith(("anon_inode:", "pidfd:")):
            info = procfs.descriptor_info(self._pid, descriptor)
            if "Pid" in info:
                return Thing("process", f"pid {info['Pid']}")
            return Thing(link.partition(":")[2].strip("[]"))
        if link.startswith("/dev/"):
            return Thing("terminal" if _TERMINAL.fullmatch(link) else "device", link)
        kind = self._mount(descriptor)[1]
        if calls.is_elsewhere(kind):
            return Thing("file", f"{link} on {kind}")
        if procfs.is_fifo(self._pid, descriptor):
            return self._pipe("named pipe", link, descriptor, link)
        return Thing("file", link)

    def _mount(self, descriptor: int) -> tuple[str, str]:
        info = procfs.descriptor_info(self._pid, descriptor)
        return procfs.mounts_of(self._pid).get(info.get("mnt_id", ""), ("", ""))

    def _pipe(self, kind: str, name: str, descriptor: int, link: str) -> Thing:
        """Return a pipe, with those who have its other end open."""
        mode = self._mode(self._pid, descriptor)
        own = self._has_other_end(self._pid, link, mode)
        holders = [child for child in self._children if self._has_other_end(child["pid"], link, mode)]
        words = tuple(map(child_in_words, holders))
        return Thing(kind, name, words, own)

    def _has_other_end(self, pid: int, link: str, mode: int) -> bool:
        """Whether a process has the same pipe open the other way."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            for one in procfs.descriptors_of(pid)[:_MOST_OWN]:
                if self._room <= 0:
                    return False
                self._room -= pid != self._pid
                with contextlib.suppress(OSError):
                    if procfs.link_of(pid, one) == link and self._mode(pid, one) != mode:
                        return True
        return False

    def _mode(self, pid: int, descriptor: int) -> int:
        return int(procfs.descriptor_info(pid, descriptor)["flags"], 8) & os.O_ACCMODE

    def _lock(self, call: Call, descriptor: int) -> Wait:
        """Return that a thread waits for a lock, and who holds it."""
        inode = procfs.descriptor_info(self._pid, descriptor).get("ino", "")
        locks = procfs.file_locks()
        waiting = {
            fields[0]
            for fields in locks
            if fields[1] == "->" and fields[5] == str(self._pid) and fields[6].rpartition(":")[2] == inode
        }
        holders = [fields[4] for fields in locks if fields[1] != "->" and fields[0] in waiting]
        path = procfs.link_of(self._pid, descriptor)
        return calls.of_file_lock(call, path, [_process_in_words(pid) for pid in holders])

    def _sqlite(self) -> str:
        """Say who holds a lock of SQLite's on a file that the process has open, "" if that was not seen."""
        held: dict[tuple[str, str], str] = {}
        for _number, *fields in procfs.file_locks():
            if fields[0] != "POSIX" or fields[3] == str(self._pid) or not _is_sqlites(fields[5]):
                continue
            device, inode = fields[4].rsplit(":", 1)
            held[device, inode] = fields[3]
        if not held:
            return ""
        mounts = procfs.mounts_of(self._pid)
        for one in procfs.descriptors_of(self._pid)[:_MOST_OWN]:
            with contextlib.suppress(OSError, ValueError):
                info = procfs.descriptor_info(self._pid, one)
                device, _kind = mounts.get(info.get("mnt_id", ""), ("", ""))
                major, _, minor = device.partition(":")
                holder = held.get((f"{int(major):02x}:{int(minor):02x}", info.get("ino", "")))
                if holder:
                    path = procfs.link_of(self._pid, one).removesuffix("-shm")
                    return f"SQLite's lock on {path} is held by {_process_in_words(holder)}"
        return ""


def _is_sqlites(first: str) -> bool:
    return first.isdecimal() and any(int(first) in bytes_ for bytes_ in _SQLITE)


def _process_in_words(pid: str) -> str:
    return f"pid {pid} ({procfs.name_of(int(pid))})" if pid.isdecimal() else "somebody"


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
