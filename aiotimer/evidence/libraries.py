"""A classifier of source files: which files of a stack are a library's, and which are the user's.

The laws of this file: it is decided here and nowhere else, so that the verdict of a server and the page that
is printed from its record agree; and by the text of the path alone, because the page may be printed on
another machine. A file is the user's unless its path says that it is not.
"""

from __future__ import annotations

import re
from pathlib import Path

_LIBRARY = re.compile(
    r"<frozen "  # what the interpreter has built in, such as the import system
    r"|(.*/)?lib(64)?/python3\.\d+t?/"  # the standard library: the system's, pyenv's, conda's
    r"|(.*/)?lib(64)?/python3\d+\.zip/"  # the same, zipped
    r"|(.*/)?(site|dist)-packages/"  # what pip or the distribution has installed, zipped or not
    r"|.*\.(pyx|px[di])\Z",  # Cython: where it was when somebody compiled it, most likely elsewhere
    re.DOTALL,
)

_OURS = str(Path(__file__).parent.parent) + "/"
"""This package, which is no library by its path when it is installed as editable."""


def is_users(file: str) -> bool:
    """Whether a file is the user's: no library's, and not aiotimer's.

    Args:
        file: as a frame has it: absolute, relative (``train.py``, of a script), inside a zip file, or no file
            at all (``<string>``, which is the user's code in nearly every case).
    """
    return not file.startswith(_OURS) and _LIBRARY.match(file) is None
