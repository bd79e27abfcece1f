"""A registry of greenlets: which of them has entered a block, where gevent has taken the place of threads.

``monkey.patch_all()`` replaces ``get_ident``, too: what it returns is a greenlet's number then. The entry of
a block says that number, negated: it is no thread's, and nobody takes it for one.

The laws of this file: gevent is not imported, here or anywhere; nothing keeps a greenlet alive. Whoever
imports this before gevent has replaced anything knows threads only.
"""

from __future__ import annotations

import sys
import weakref
from _thread import get_ident
from types import BuiltinFunctionType
from typing import Any

known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Greenlets that have entered blocks, by what their entries say."""


def note_greenlet() -> int:
    """Return what an entry says of the greenlet that makes it, which is ``known`` by that from now on."""
    greenlet = sys.modules["greenlet"].getcurrent()
    number = -id(greenlet)
    known[number] = greenlet
    return number


_REPLACED = not isinstance(get_ident, BuiltinFunctionType) and "greenlet" in sys.modules

entered_by = note_greenlet if _REPLACED else get_ident
"""Returns what a block's entry says of who makes it."""
