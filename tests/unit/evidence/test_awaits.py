"""What a task awaits, in words, by what the program has called."""

import pytest

from aiotimer.evidence import awaits
from aiotimer.evidence.findings import Frame


def library(*places: str) -> list[Frame]:
    return [[f"/usr/lib/python3.12/{file}", 1, function] for file, function in map(str.split, places)]


CALLS = [
    (["asyncio/locks.py _ContextManagerMixin.__aenter__", "asyncio/locks.py Lock.acquire"], "a lock"),
    (["asyncio/locks.py Semaphore.acquire"], "a semaphore"),
    (["asyncio/locks.py Event.wait"], "an event"),
    (["asyncio/locks.py Condition.wait_for", "asyncio/locks.py Condition.wait"], "a condition"),
    (["asyncio/queues.py Queue.put"], "room in a queue"),
    (["asyncio/queues.py Queue.join", "asyncio/locks.py Event.wait"], "a queue to be done"),
    (["asyncio/streams.py StreamReader.readline", "asyncio/streams.py StreamReader._wait_for_data"],
     "data of a stream"),
    (["asyncio/streams.py StreamWriter.drain"], "room in a stream"),
    (["asyncio/subprocess.py Process.wait", "asyncio/base_subprocess.py BaseSubprocessTransport._wait"],
     awaits.OF_A_CHILD),
    (["asyncio/tasks.py as_completed.<locals>._wait_for_one", "asyncio/queues.py Queue.get"],
     "the next one of several"),
    (["asyncio/selector_events.py BaseSelectorEventLoop.sock_recv_into"], "data of a socket"),
    (["site-packages/anyio/streams/memory.py MemoryObjectReceiveStream.receive",
      "site-packages/anyio/_backends/_asyncio.py Event.wait", "asyncio/locks.py Event.wait"],
     "a memory stream"),
    (["asyncio/tasks.py sleep"], ""),
    (["app/queues.py Queue.get"], ""),
    ([], ""),
]  # fmt: skip


@pytest.mark.parametrize(("places", "words"), CALLS)
def test_what_is_awaited(places: list[str], words: str) -> None:
    assert awaits.of_frames(library(*places)) == words


@pytest.mark.parametrize(
    ("waits_for", "call"),
    [
        ("asyncio.to_thread", "to_thread"),
        ("run_in_executor", "run_in_executor"),
        ("<Future pending>", ""),
        ("", ""),
    ],
)
def test_which_call_is_made_in_a_thread(waits_for: str, call: str) -> None:
    assert awaits.of_thread(waits_for, library("asyncio/threads.py to_thread")) == call


def test_a_call_that_anyio_makes_in_a_thread() -> None:
    frames = library("site-packages/anyio/to_thread.py run_sync", "x.py wait")
    assert awaits.of_thread("<Future pending>", frames) == "to_thread.run_sync"
