"""Inspection channels: on them the server asks the event loops of a worker what their tasks wait for.

The laws of this file: nothing here knows a worker, only the channels of one; a loop has a connection of its
own, which it opened with ``Attend``; at most one question is on its way on each; who does not answer is told
from who has not been asked. An answer is untrusted: it is data of the types of
:class:`~aiotimer._core.wire.Tasks`, and no longer than a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from .._core import wire
from ..errors import ProtocolError
from ..evidence import Answers
from ..evidence.findings import ASK_WITHIN

MAX_CHANNELS = 64
"""Inspection channels of one worker: one for each of its event loops."""


class InspectionChannel:
    """The channel to one event loop of a worker.

    Args:
        channels: of the same worker, where this one is from now on until it is closed.
        send: sends it a message.

    Raises:
        ProtocolError: that worker has too many.
    """

    def __init__(self, channels: list[InspectionChannel], send: Callable[[wire.Inspect], None]) -> None:
        if len(channels) >= MAX_CHANNELS:
            raise ProtocolError(f"more than {MAX_CHANNELS} event loops of one process")
        channels.append(self)
        self._channels = channels
        self._send = send
        self._number = 0
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[wire.Tasks] | None = None  # of the question on its way
        self._closed = False

    async def inspect(self, slots: tuple[int, ...]) -> wire.Tasks:
        """Ask what the loop's tasks wait for, as soon as an earlier question has been answered.

        Raises:
            ConnectionError: the connection is closed.
        """
        async with self._turn:
            if self._answer is not None:
                # Whoever asked has not waited for it.
                await asyncio.wait([self._answer])
            if self._closed:
                raise ConnectionResetError
            self._number += 1
            self._answer = asyncio.get_running_loop().create_future()
            self._send(wire.Inspect(self._number, slots))
            await asyncio.wait([self._answer])  # which does not cancel it: it stays to be answered
            answer, self._answer = self._answer, None
            if answer.cancelled():
                raise ConnectionResetError
            return answer.result()

    def answered(self, answer: wire.Tasks) -> None:
        """The loop has answered.

        Raises:
            ProtocolError: nobody had asked.
        """
        waiting = self._answer
        if waiting is None or waiting.done() or answer.number != self._number:
            raise ProtocolError("an answer that nobody asked for")
        waiting.set_result(answer)

    def close(self) -> None:
        """The connection is closed: whoever waits need not."""
        self._closed = True
        self._channels.remove(self)
        if self._answer is not None and not self._answer.done():
            self._answer.cancel()


async def inspect_loops(
    channels: list[InspectionChannel], slots: tuple[int, ...] = (), within: float = ASK_WITHIN
) -> Answers:
    """Ask every loop of a worker that has a channel what its tasks wait for.

    Args:
        channels: the worker's.
        slots: the timers of interest.
        within: seconds to wait for the answers.

    Returns:
        The answers of those that did, and how many were asked.
    """
    channels = list(channels)
    if not channels:
        return Answers([], 0)
    questions = [asyncio.ensure_future(channel.inspect(slots)) for channel in channels]
    try:
        await asyncio.wait(questions, timeout=within)
    finally:
        for question in questions:
            question.cancel()
    answers = []
    for question in questions:
        if question.done():
            with contextlib.suppress(ConnectionError):
                answers.append(question.result())
    return Answers(answers, len(channels))
