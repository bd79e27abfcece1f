"""The named pipe of torch's file timer, for a command of ``aiotimer run`` that wants torchrun to serve one.

``TORCHELASTIC_ENABLE_FILE_TIMER=1`` has the agent of torchrun serve it, look ten times a second, and end
itself after it has killed a worker. A command that is started with that is served by its timer server
instead: the workers' code stays as it is.

The laws of this file: the pipe is there before the command, and open here, so that nothing which is written
while the server is restarted is lost; it is gone after the command. Who wants none imports nothing for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self

ENABLE, FILE = "TORCHELASTIC_ENABLE_FILE_TIMER", "TORCHELASTIC_TIMER_FILE"
"""What torchrun's agent reads: 1, if it is to serve the pipe; and where, which it tells its workers, too."""

_BY_US = "aiotimer"
"""The value that has the agent serve no pipe, and still says to whoever asks that there is one."""


class TimerFile:
    """A pipe for the workers of a command, if that wants one; use it in ``with``.

    Args:
        environment: of the command.
        socket_path: of its server; beside it the pipe is, if the environment says no path.

    Attributes:
        descriptor: of the pipe; None: none is wanted.

    Raises:
        UnsafePath, AlreadyServing: as for a ``FileTimerBridge``.
    """

    def __init__(self, environment: Mapping[str, str], socket_path: str) -> None:
        self.descriptor: int | None = None
        self._path = os.path.abspath(environment.get(FILE) or f"{socket_path}.torch")
        if environment.get(ENABLE) == "1":
            from ..server.file_timer import open_pipe

            self.descriptor = open_pipe(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        if self.descriptor is not None:
            from ..server.file_timer import remove_pipe

            remove_pipe(self.descriptor, self._path)

    @property
    def environment(self) -> dict[str, str]:
        """What is to be said of it in the command's environment."""
        return {} if self.descriptor is None else {ENABLE: _BY_US, FILE: self._path}
