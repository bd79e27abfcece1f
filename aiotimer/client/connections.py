"""Every link of this process: one per server and kind, and what becomes of them in a forked child."""

from __future__ import annotations

import os
import weakref

from .._linux.environment import check_socket_path
from .connection import Link, abandon_tables
from .socket_only import SocketLink

_links: dict[tuple[str, bool], Link] = {}
_every_link: weakref.WeakSet[Link] = weakref.WeakSet()


def link_to(path: str, *, shared: bool) -> Link:
    """Return this process's link to a server, connected or not.

    Raises:
        UnsafePath: the path cannot be a socket's.
    """
    path = check_socket_path(path)
    link = _links.get((path, shared))
    if link is None:
        link = Link(path) if shared else SocketLink(path)
        link = _links.setdefault((path, shared), link)
        _every_link.add(link)
    return link


def _after_fork_in_child() -> None:
    abandon_tables()
    for link in list(_every_link):
        link.fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
