"""An adapter for ``torch.distributed.elastic.timer``: its clients, servers and queues over those of aiotimer.

Code that is written for torch's timer stays as it is, but for the line that makes the client or the server.
What torch calls by a name has here the meaning that it has there; what is kept is kept by aiotimer.

The laws of this file:

* It is the only one that imports torch, and nothing in the package imports it.
* Torch's times are on the wall clock. They are turned into deadlines on the monotonic clock as soon as they
  come in; what goes out to torch's code is turned back.
* A timer has one name, and one name is one timer, as in torch. But the default scope of torch's ``expires``
  is the same text for every caller: there the name is the caller's line.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

try:
    from torch.distributed.elastic.timer import api
except ImportError as error:
    raise ImportError(
        "aiotimer.integrations.torch_elastic is an adapter for PyTorch, which cannot be imported here "
        f"({error}): pip install torch; its build for the CPU will do",
        name=error.name,
    ) from error

from .._core.file_timer import fitting_scope, monotonic_deadline
from .._core.requests import RELEASE, TimerRequest, WorkerId
from ..client.arguments import site_name
from ..client.clients import BaseClient, TimerClient, configured, default_client
from ..client.configure import configure
from ..client.launch import private_socket
from ..errors import AiotimerError
from ..events import log
from ..queue import MemoryQueue
from ..server.file_timer import FileTimerBridge
from ..server.listener import clean_up
from ..server.server import TimerServer

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import FrameType

__all__ = ["FileTimerBridge", "TorchRequestQueue", "TorchTimerClient", "TorchTimerServer"]

_CONTEXTLIB = "contextlib.py"
"""The file that torch's ``expires`` takes for its caller's: it is a generator, resumed from there."""

_MOST_FAILURES = 10
"""After so many one after the other it is the queue that cannot be read, and not what is in it."""

_STOP_WITHIN = 10.0
"""Seconds in which an embedded server stops; what it records at its end is written in that time."""


class TorchTimerClient(api.TimerClient):
    """A client for ``torch.distributed.elastic.timer.configure``: timers of this process, kept by aiotimer.

    It keeps torch's keyed meaning: one scope is one timer, which is armed anew by each ``acquire``, also by a
    recursive call. Blocks of ``expires`` that name no scope are named after the caller's ``file:line``, so a
    block inside of another one on another line does not disarm that.

    Args:
        client: whose server watches; by default the one that ``aiotimer.configure`` has made. If nobody has
            called that yet, it is called, without arguments: it takes the server at ``$AIOTIMER_SOCKET``, or
            starts a private one.

    Raises:
        TypeError: ``client`` is no ``TimerClient``.
        ServerUnavailable, UnsafePath: as for ``aiotimer.configure``.
    """

    def __init__(self, client: TimerClient | None = None) -> None:
        super().__init__()
        if client is not None and not isinstance(client, TimerClient):
            raise TypeError(f"client must be an aiotimer.TimerClient, not {type(client).__name__}")
        if client is None and default_client() is None:
            configure()
        self._client = client
        self._scopes: dict[FrameType, str] = {}  # of the blocks that name none, by torch's frames
        self._armed_by: dict[str, BaseClient] = {}  # so that a release goes where its acquire went

    def acquire(self, scope_id: str, expiration_time: float) -> None:
        """Arm a timer, or move it.

        Args:
            scope_id: its name.
            expiration_time: wall-clock seconds, as from ``time.time()``; 0 has expired, and a strictly
                negative one is a release.

        Raises:
            TypeError, ValueError: the arguments are not a name and a finite number.
            NotConfigured: ``aiotimer.configure(None)`` has been called since.
            ServerUnavailable, Refused, TableFull: as for the client's own ``acquire``.
        """
        deadline = _deadline_of(expiration_time)
        scope, block = _name(scope_id), _block_of(scope_id)
        if block is not None:
            scope = _name_of_caller(block)
        if deadline < 0.0:
            self.release(scope)
            return
        if block is not None:
            self._scopes[block] = scope
        client = self._client or configured()
        try:
            _put(client, client._acquiring(scope, deadline))
        except BaseException:
            if block is not None:
                self._scopes.pop(block, None)  # torch does not release what it has not acquired
            raise
        self._armed_by[scope] = client

    def release(self, scope_id: str) -> None:
        """Take a timer away; a no-op if it is not armed. Never fails for want of a server.

        Raises:
            TypeError: ``scope_id`` is not a str.
        """
        scope, block = _name(scope_id), _block_of(scope_id)
        if block is not None:
            scope = self._scopes.pop(block, scope)
        client = self._armed_by.pop(scope, None) or self._client or default_client()
        if client is not None:
            _put(client, TimerRequest(client._queue.worker_id, scope, RELEASE))


def _put(client: BaseClient, request: TimerRequest) -> None:
    """Do what a ``TimerClient`` does, whichever client is the configured one."""
    try:
        client._queue.put(request, client._budget, insist=client._insists)
    except BaseException as error:  # noqa: BLE001 - raised again, unless a server is what is missing
        client._not_put(request, error)


def _deadline_of(expiration_time: float) -> float:
    return monotonic_deadline(
        expiration_time,
        wall=time.time(),  # noqa: TID251 - torch's clock, from which it is turned into ours
        now=monotonic(),
    )


def _wall_time_of(deadline: float) -> float:
    return deadline + time.time() - monotonic()  # noqa: TID251 - for torch's code, which compares it with that


def _name(scope_id: str) -> str:
    if not isinstance(scope_id, str):
        raise TypeError(f"scope_id must be a str, not {type(scope_id).__name__}")
    return fitting_scope(scope_id)


def _block_of(scope_id: str) -> FrameType | None:
    """Return the frame of the ``expires`` that has called, if its block names no scope; else None.

    It is that of a generator, and so the same one at the end of the block.
    """
    if os.path.basename(scope_id.rpartition("#")[0]) != _CONTEXTLIB:
        return None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not (
        frame.f_code.co_name == "expires" and frame.f_globals.get("__name__") == api.__name__
    ):
        frame = frame.f_back
    return frame


def _name_of_caller(block: FrameType) -> str:
    frame, outer = block, block.f_back
    while outer is not None:
        frame, outer = outer, outer.f_back
        if os.path.basename(frame.f_code.co_filename) != _CONTEXTLIB:
            break
    return site_name(frame)


class TorchRequestQueue(api.RequestQueue):
    """A queue of torch's timer requests, with the contract of torch's ``RequestQueue``, over aiotimer's.

    Of all requests for one (worker, scope) it holds the newest. What comes out of ``get`` are the objects
    that were put in.

    Args:
        mp_queue: a ``multiprocessing.Queue`` into which ``LocalTimerClient`` puts its requests; by default
            only :meth:`put` does.
    """

    def __init__(self, mp_queue: Any = None) -> None:
        super().__init__()
        self._mp_queue = mp_queue
        self._failures = 0  # to read from it, one after the other
        self._pending = MemoryQueue()

    def put(self, request: api.TimerRequest) -> None:
        """Add a request.

        Raises:
            TypeError, ValueError: its expiration time is not a finite number.
        """
        _deadline_of(request.expiration_time)
        self._pending.put(cast("TimerRequest", request))

    def size(self) -> int:
        """Return how many (worker, scope) have a new request. It never shrinks until ``get``."""
        self._collect()
        return self._pending.size()

    def get(self, size: int, timeout: float) -> list[api.TimerRequest]:
        """Take up to ``size`` requests out, waiting at most ``timeout`` seconds for so many."""
        until = monotonic() + timeout
        self._collect()
        while self._mp_queue is not None and self._pending.size() < size:
            left = until - monotonic()
            if left <= 0 or not self._take(left):
                break
        left = max(0.0, until - monotonic()) if self._mp_queue is None else 0.0
        found: list[Any] = self._pending.get(size, left)
        return [request for request in found if request is not _WAKE]

    def wake(self) -> None:
        """Let whoever waits in :meth:`get` go on, with what there is: this queue's server stops."""
        if self._mp_queue is None:
            self._pending.put(_WAKE)
            return
        try:
            self._mp_queue.put(None)
        except (OSError, ValueError):
            pass  # it has been closed, and nobody waits

    def _collect(self) -> None:
        """Take over what lies in the other queue."""
        while self._mp_queue is not None and self._take(0.0):
            pass

    def _take(self, timeout: float) -> bool:
        """Take over one request, waiting for it; return whether more may follow."""
        try:
            request = self._mp_queue.get(timeout > 0.0, timeout)
        except queue.Empty:
            return False
        except Exception as error:  # noqa: BLE001 - logged: what cannot be unpickled must not cost the others
            self._failures += 1
            if self._failures > _MOST_FAILURES or "is closed" in str(error):
                log.warning("a queue of timer requests cannot be read any more: %s", error)
                self._mp_queue = None
                return False
            log.warning("what is in a queue of timer requests is none: %s", error)
            return True
        self._failures = 0
        if request is None:  # see wake()
            return False
        try:
            self.put(request)
        except (AttributeError, TypeError, ValueError) as error:
            log.warning("%r in a queue of timer requests is none: %s", request, error)
        return True


_WAKE: Any = TimerRequest(0, "", RELEASE)
"""What is put into a queue so that its ``get`` returns."""


class TorchTimerServer(api.TimerServer):
    """A timer server for launchers that embed torch's, over one of aiotimer's.

    It takes the place of ``LocalTimerServer``, with the same arguments: requests that come out of the queue
    become timers of an aiotimer server, which runs in a thread of this process with an event loop of its own,
    and reaps at the deadline. Workers with clients of aiotimer's find that at :attr:`socket_path`. It does
    not end its own process after a worker's. Override ``_reap_worker`` to reap in another way: its result,
    and what it raises, count as in torch.

    Args:
        request_queue: torch's ``RequestQueue``, or a ``multiprocessing.Queue`` as for ``LocalTimerServer``;
            by default a :class:`TorchRequestQueue` of its own.
        max_interval: seconds that are waited for a request at a time. Timers do not wait for it.
        daemon: whether its threads are daemons.
        socket_path: where its server listens; by default at a private path.
        timer_file: the path of a named pipe that is served, too, see :class:`FileTimerBridge`.
        options: for ``aiotimer.TimerServer``: ``reap``, ``on_event`` and the others.

    Attributes:
        socket_path: where its server listens.

    Raises:
        UnsafePath, ValueError: as for ``aiotimer.TimerServer``.
    """

    def __init__(
        self,
        request_queue: Any = None,
        max_interval: float = 60.0,
        daemon: bool = True,
        *,
        socket_path: str | os.PathLike[str] | None = None,
        timer_file: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(request_queue, api.RequestQueue):
            request_queue = TorchRequestQueue(request_queue)
        super().__init__(request_queue, max_interval, daemon)
        self._is_private = socket_path is None
        server = _Embedded(self, socket_path or private_socket(shared=False), options)
        self.socket_path = server.socket_path
        self._thread = _ServerThread(server, timer_file)

    def start(self) -> None:
        """Serve, and read requests, in threads; a no-op if it does so already.

        Raises:
            ServerError: the server cannot start.
            UnsafePath, AlreadyServing: the same; or ``timer_file`` cannot be served.
        """
        self._thread.start(daemon=self._daemon)
        if self._watchdog_thread is None:
            self._stop_signaled = False
            super().start()

    def stop(self) -> None:
        """Stop both; a no-op before. Timers stay armed, for a server that comes after this one."""
        self._stop_signaled = True
        if self._watchdog_thread is not None and isinstance(self._request_queue, TorchRequestQueue):
            self._request_queue.wake()
        super().stop()
        if self._thread.stop() and self._is_private:
            clean_up(self.socket_path)

    def register_timers(self, timer_requests: Iterable[api.TimerRequest]) -> None:
        """Arm and release timers. A request that cannot be one is logged, and the others count."""
        requests = list(timer_requests)
        if requests:
            self._thread.call(lambda server: _register(server, requests), daemon=self._daemon)

    def clear_timers(self, worker_ids: Iterable[int]) -> None:
        """Deal with all timers of these processes."""
        pids = list(worker_ids)
        self._thread.call(lambda server: server.clear_timers(pids), daemon=self._daemon)

    def get_expired_timers(self, deadline: float) -> dict[int, list[api.TimerRequest]]:
        """Return what has expired by a time of the wall clock, and has not been dealt with, by pid."""
        at = _deadline_of(deadline)
        expired = self._thread.call(lambda server: server.get_expired_timers(at), daemon=self._daemon)
        return {
            worker.pid: [
                api.TimerRequest(worker.pid, request.scope_id, _wall_time_of(request.expiration_time))
                for request in requests
            ]
            for worker, requests in expired.items()
        }

    def _reap_worker(self, worker_id: int) -> bool:
        """Reap a process, in the steps of its ladder; return whether that is done."""
        return bool(self._thread.call(lambda server: server.carry_out(worker_id), daemon=self._daemon))

    def _run_watchdog(self) -> None:
        """Take requests over; whatever expires is the server's business."""
        requests = self._request_queue
        self.register_timers(requests.get(max(1, requests.size()), self._max_interval))


def _register(server: TimerServer, requests: Iterable[api.TimerRequest]) -> None:
    for request in requests:
        try:
            deadline = _deadline_of(request.expiration_time)
            server.register_timers([TimerRequest(request.worker_id, _name(request.scope_id), deadline)])
        except (AiotimerError, OSError, OverflowError, TypeError, ValueError) as error:
            log.warning("a timer request on %r is refused: %s", request.worker_id, error)


class _Embedded(TimerServer):
    """The server of a ``TorchTimerServer``, which may reap in its own way."""

    def __init__(
        self, outer: TorchTimerServer, path: str | os.PathLike[str], options: dict[str, Any]
    ) -> None:
        super().__init__(path, **options)
        self._outer = outer
        self._reaps_as_we_do = type(outer)._reap_worker is TorchTimerServer._reap_worker

    def reap_worker(self, worker_id: WorkerId) -> bool | Awaitable[bool]:
        """Have torch's method do it, in a thread, if somebody has overridden that."""
        if self._reaps_as_we_do:
            return super().reap_worker(worker_id)
        return self._loop.run_in_executor(None, self._outer._reap_worker, worker_id.pid)

    async def carry_out(self, pid: int) -> bool:
        """Reap a process of this user's as aiotimer does it."""
        worker = self._registry.register_for_owner([pid]).get(pid)
        if worker is None:
            return True  # it is gone
        result = super().reap_worker(worker.id)
        return await result if inspect.isawaitable(result) else result


class _ServerThread:
    """A thread with an event loop, for a server.

    Args:
        server: which has not been started.
        timer_file: of a pipe to serve, too.
    """

    def __init__(self, server: _Embedded, timer_file: str | os.PathLike[str] | None) -> None:
        self._server = server
        self._timer_file = timer_file
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self, *, daemon: bool) -> None:
        """Start the server, and return when it serves; a no-op if it does."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            answer: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=self._run, args=(answer,), name="aiotimer-server", daemon=daemon
            )
            self._thread.start()
            error = answer.get()
            if error is not None:
                self._thread.join()
                self._thread = None
                raise error

    def stop(self) -> bool:
        """Stop the server; return whether it has served."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return False
            if thread.is_alive():
                stopping = asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop)
                try:
                    stopping.result(_STOP_WITHIN)
                except TimeoutError:
                    log.error("an embedded timer server has not stopped within %g s", _STOP_WITHIN)
            thread.join(_STOP_WITHIN)
            return True

    def call(self, function: Callable[[_Embedded], Any], *, daemon: bool) -> Any:
        """Return what a function of the server returns, called in its loop; start that if need be."""
        self.start(daemon=daemon)

        async def in_the_loop() -> Any:
            result = function(self._server)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(in_the_loop(), self._loop).result()

    def _run(self, answer: queue.SimpleQueue[BaseException | None]) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            try:
                await self._server.start()
                bridge = None if self._timer_file is None else FileTimerBridge(self._server, self._timer_file)
                if bridge is not None:
                    await bridge.__aenter__()
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                await self._server.stop()
                answer.put(error)
                return
            answer.put(None)
            try:
                await self._server.serve_forever()
            finally:
                if bridge is not None:
                    await bridge.__aexit__()

        try:
            asyncio.run(serve())
        except AiotimerError as error:
            log.error("an embedded timer server has ended: %s", error)
