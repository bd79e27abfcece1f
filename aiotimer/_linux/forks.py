"""A fork, as the child sees it: ``os.fork()`` runs hooks there, a fork in C (uWSGI's, a library's) runs none.

The laws of this file:

* What must be done in a child is done once, in every child: by ``os.fork()``, or when the child first comes
  here (:func:`notice`).
* A process knows a child by a page that the kernel leaves blank there (``MADV_WIPEONFORK``). A pid would not
  do: the first process of a new pid namespace may have its parent's.
* Memory that a child does not have (``MADV_DONTFORK``) is reached through views that have ended there
  (:func:`end_at_fork`): who reads or writes it gets an IndexError, not a segmentation fault, and comes here.

The last is clever on purpose. To ask before a store takes about as long as the store, in every block. But a
memoryview compares every index with its length, which it finds by a pointer; let that lead to the page, and
the kernel itself makes the length zero in the child. Nobody else asks, or pays anything. Where the pointer
is, CPython's own C API tells; what was done is tried before anybody relies on it, and undone if it does not
do what it should. Then, and on kernels without such pages (before Linux 4.14), a child of a fork in C that
enters a block has the segmentation fault, unless it came here before.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from _thread import get_ident
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

_MADV_WIPEONFORK = 18
"""Of madvise(2); the module has no name for it."""

_WORD = 8

_BUFFER_WORDS, _BUFFER_SHAPE = 10, 6
"""``Py_buffer`` in words, and which of them is the pointer to the lengths (CPython's ``pybuffer.h``)."""

_FULL = 0x11C
"""``PyBUF_FULL_RO``: a buffer's owner tells all about it."""

_WITHIN = 1.0
"""Seconds for which a thread of a child waits for the one that is at it: that may have been its parent's."""

Hook = Callable[[], object]


class _Generation:
    """A process, from its beginning or the fork that made it to the fork that makes another one.

    Args:
        advice: with which the kernel is asked to mark the end.

    Attributes:
        claim: the thread that does what there is to do when it is over.
        is_wiped: whether the kernel marks that.
    """

    def __init__(self, advice: int) -> None:
        self.claim: dict[None, int] = {}
        self._pid = os.getpid()
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = memoryview(self._page).cast("l")  # as long as a pointer
        self._words[0] = 1
        self._free = itertools.count(1)
        self._places: dict[int, int] = {}
        self.is_wiped = True
        try:
            self._page.madvise(advice)
        except OSError:
            self.is_wiped = False

    def is_over(self) -> bool:
        """Whether this is another process by now."""
        return not self._words[0] or (not self.is_wiped and self._pid != os.getpid())

    def place(self, length: int) -> int:
        """Return the word of the page that holds a length; equal ones share it, as there are few."""
        place = self._places.get(length)
        if place is None:
            place = self._places.setdefault(length, next(self._free))
            self._words[place] = length
        return place

    def address(self, place: int) -> int:
        """Return where a word of the page is."""
        import ctypes

        return ctypes.addressof(ctypes.c_char.from_buffer(self._page)) + place * _WORD


class Forks:
    """What is to be done in every child of this process, and what a child does not have.

    Args:
        advice: see ``_Generation``.
        shape: the word of ``Py_buffer`` that points to the lengths.
        within: seconds, see ``_WITHIN``.
    """

    def __init__(
        self, advice: int = _MADV_WIPEONFORK, shape: int = _BUFFER_SHAPE, within: float = _WITHIN
    ) -> None:
        self._advice, self._shape, self._within = advice, shape, within
        self._hooks: list[Hook] = []
        self._generations = [_Generation(advice)]  # the pages stay: there may be views of each for ever

    def in_child(self, hook: Hook) -> None:
        """Have a function called in every child, whatever another one raises there."""
        self._hooks.append(hook)

    def notice(self) -> bool:
        """Do what a fork in C has left undone. Return whether this is a child that had not noticed."""
        generation = self._generations[-1]
        if not generation.is_over():
            return False
        self._begin_anew(generation)
        return True

    def after_fork_in_child(self) -> None:
        """Do it now, the kernel's mark or no: but for a child that has noticed long ago."""
        generation = self._generations[-1]
        if generation.is_over() or not generation.is_wiped:
            self._begin_anew(generation)

    def _begin_anew(self, generation: _Generation) -> None:
        me = get_ident()
        if generation.claim.setdefault(None, me) != me:  # atomic: of several threads one does it
            until = monotonic() + self._within
            while self._generations[-1] is generation and monotonic() < until:
                sleep(0.001)
            return
        try:
            with contextlib.ExitStack() as each:
                for hook in reversed(self._hooks):
                    each.callback(hook)
        finally:
            self._generations.append(_Generation(self._advice))

    def end_at_fork(self, view: memoryview[Any]) -> bool:
        """Have a view be without items in a child: whatever is read or written there, IndexError is raised.

        Args:
            view: of one dimension, not empty, and not in use yet.

        Returns:
            Whether that is so. If not, nothing has been done.
        """
        generation = self._generations[-1]
        pointer = _pointer_to_length(view, self._shape) if generation.is_wiped else None
        if pointer is None:
            return False
        length, ends_by = pointer.value, generation.address(generation.place(len(view)))
        try:
            if _ends_by(pointer, view):
                length = ends_by
        finally:
            pointer.value = length
        return bool(length == ends_by)


def _pointer_to_length(view: memoryview[Any], shape: int) -> Any:
    """Return the pointer, as a ``c_void_p`` in the view itself, by which it finds how long it is."""
    import ctypes

    buffer = (ctypes.c_void_p * _BUFFER_WORDS)()
    get = ctypes.pythonapi.PyObject_GetBuffer
    get(ctypes.py_object(view), ctypes.byref(buffer), _FULL)  # raises what it raises
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    words = (ctypes.c_void_p * (type(view).__basicsize__ // _WORD)).from_address(id(view))
    found = [index for index, word in enumerate(words) if word is not None and word == buffer[shape]]
    if len(found) != 1:
        return None
    return ctypes.c_void_p.from_address(id(view) + found[0] * _WORD)


def _ends_by(pointer: Any, view: memoryview[Any]) -> bool:
    """Whether a view has no items if its pointer leads to a zero. Afterwards it leads nowhere."""
    import ctypes

    length = len(view)
    word = ctypes.c_ssize_t(length)  # not one of the page: other views have those
    pointer.value = ctypes.addressof(word)
    is_it = len(view) == length
    word.value = 0
    try:
        view[0]
    except IndexError:
        return is_it and len(view) == 0
    return False


_forks = Forks()
in_child, notice, end_at_fork = _forks.in_child, _forks.notice, _forks.end_at_fork

os.register_at_fork(after_in_child=_forks.after_fork_in_child)
