"""The name of this process: what people call it in reports, by its own account.

The laws of this file: it is for people, and nothing is decided by it; a framework is asked only if it is
loaded already; what a program has set to something odd gives another name, and no error.
"""

from __future__ import annotations

import os
import re
import sys
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from .._linux.paths import NAME_LENGTH
from .membership import given_rank

_given = ""
"""What ``configure(name=...)`` said."""

_RANKS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
)
"""Variables that say which of how many a process is; the first that is set counts."""

_UNNAMED = re.compile(r"\w*Process(-\d+(:\d+)*)?")
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib(?:64)?/python3")


def give(name: str) -> None:
    """Call this process so, from the next connection on; "" as it is found."""
    global _given
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    _given = name


def name_of_this_process() -> str:
    """Return it, ``NAME_LENGTH`` characters at most; "": its command name serves as well."""
    name = _given or found_name(ChainMap(given_rank(), os.environ), sys.modules)
    return name.encode(errors="replace").decode()[:NAME_LENGTH]  # what is no text cannot be sent


def found_name(environment: Mapping[str, str], modules: Mapping[str, Any]) -> str:
    """Return the name that a launcher or a framework gave this process, else its program's; with its rank.

    Args:
        environment: its variables.
        modules: those that are loaded.
    """
    named = _of_framework(environment, modules) or _of_multiprocessing(modules) or _of_program(modules)
    return f"{named} {_rank(environment)}".strip()


def _rank(environment: Mapping[str, str]) -> str:
    for rank, size in _RANKS:
        number = environment.get(rank, "")
        if number.isdecimal():
            of = environment.get(size, "")
            return f"rank {number}/{of}" if of.isdecimal() else f"rank {number}"
    return ""


def _of_framework(environment: Mapping[str, str], modules: Mapping[str, Any]) -> str:
    """Return what a framework calls its worker; it is loaded there, what that starts inherits the rest."""
    if "execnet" in modules and not _of_program(modules):  # so a worker of pytest-xdist is started
        return environment.get("PYTEST_XDIST_WORKER", "")
    if "celery" in modules and "billiard.process" in modules:
        name = _current(modules["billiard.process"])[1]
        return "celery" if name in ("", "MainProcess") else f"celery {name}"
    if environment.get("SERVER_SOFTWARE", "").startswith("gunicorn/") and "gunicorn" in modules:
        return "gunicorn worker"
    return ""


def _of_multiprocessing(modules: Mapping[str, Any]) -> str:
    """Return the name of a child of multiprocessing's: what the program called it, else its target's."""
    process, name = _current(modules.get("multiprocessing.process"))
    if process is None or name in ("", "MainProcess"):
        return ""
    if not _UNNAMED.fullmatch(name) and not name.startswith(("ForkPool", "SpawnPool", "ForkServerPool")):
        return name
    target = getattr(process, "_target", None) or type(process)
    module = modules.get(getattr(target, "__module__", ""))
    if module is None or _LIBRARY.search(str(getattr(module, "__file__", "") or "/lib/python3")):
        return f"{_of_program(modules)} {name}".strip()
    return str(getattr(target, "__qualname__", name))


def _current(module: Any) -> tuple[Any, str]:
    """Return the process object of a module like ``multiprocessing.process``, and its name."""
    try:
        process = module.current_process()
        return process, str(process.name)
    except Exception:  # noqa: BLE001 - whatever stands there instead: a name is not worth an error
        return None, ""


def _of_program(modules: Mapping[str, Any]) -> str:
    """Return the script's or the module's name, "" if there is none better than the command name."""
    if "setproctitle" in modules:  # it has most likely set that
        return ""
    main = modules.get("__main__")
    module = getattr(getattr(main, "__spec__", None), "name", "")
    if isinstance(module, str) and module not in ("", "__main__"):
        return module.removesuffix(".__main__")
    file = getattr(main, "__file__", "")
    return os.path.basename(file.removesuffix("/__main__.py")) if isinstance(file, str) else ""
