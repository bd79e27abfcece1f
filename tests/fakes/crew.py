"""A crew: workers of thirteen kinds, which enter and leave blocks until they are told to end, or hang.

The laws of this file:

* A healthy worker leaves every block in time, by seconds: the machine may be busy. It ends with status 0 once
  its standard input is closed, and every child of it does. What is observed is late now and then.
* One that hangs does the same for a while; then it says ``hung X``, where X is the deadline of what it does
  not leave: a thread waits, or holds the GIL, or a task waits. If that is a child, the worker is killed when
  the child has been. Before that it says ``about to hang``.
* Everything random comes from the seed that a worker is given.
"""

from __future__ import annotations

from tests.fakes.worker import PRELUDE, SpawnedWorker, spawn_worker

KINDS = (
    "with",
    "async with",
    "nested",
    "decorated",
    "threads",
    "grace",
    "renew",
    "acquire",
    "socket-only acquire",
    "socket-only with",
    "fork",
    "exec",
    "short-lived",
)
"""What a worker does. Most have a block now and then that is only observed, and left too late."""

PROGRAM = (
    PRELUDE
    + """
import contextlib, random, select, subprocess

logging.disable(logging.CRITICAL)
kind, hangs_after, pause, seed = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
hangs_at = time.monotonic() + hangs_after
entries = 0

def told_to_end(within=0.0):
    return bool(select.select([0], [], [], within)[0])

def time_to_hang():
    return time.monotonic() > hangs_at

def over():
    return time_to_hang() or told_to_end()

def body(after):
    # Mostly short, so that many blocks are left while no server runs; some until 2.5 s before the deadline.
    global entries
    entries += 1
    time.sleep(stay(after))

def stay(after):
    most = max(0.0, after - 2.5)
    return most if chance.random() < 0.05 else min(chance.expovariate(20), most)

def hang(deadline):
    say("hung", deadline)
    # Without shared memory there may be something that a thread has to tell the server: that one goes on.
    if not kind.startswith("socket-only") and chance.random() < 0.3:
        ctypes.PyDLL(None).sleep(1000)  # with the GIL
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def another(kind, hangs_after):
    return [*sys.orig_argv[:-4], kind, repr(hangs_after), repr(pause), str(chance.randrange(10**9))]

def child_ended(status):
    if status == -signal.SIGKILL and time_to_hang():
        os.kill(os.getpid(), signal.SIGKILL)
    if status:
        say("a child ended with", status)
        os._exit(3)

def block(last=False):
    after = chance.uniform(1.0, 3.0) if last else chance.uniform(2.0, 7.0)
    if kind == "nested":
        with expires(60.0, "outer", client), expires(after, "inner", client) as block:
            hang(block.deadline) if last else body(after)
    elif kind == "renew":
        with expires(after, "renewed", client) as block:
            for _ in range(3):
                body(after)
                block.renew()
            if last:
                hang(block.deadline)
    elif kind == "decorated":
        @expires(after, "decorated", client)
        def step(depth):
            if depth:
                step(depth - 1)
            else:
                hang(began + after) if last else body(after)
        began = time.monotonic()
        step(2)
    elif kind.endswith("acquire"):
        deadline = time.monotonic() + after
        client.acquire("key", deadline)
        hang(deadline) if last else body(after)
        client.release("key")
    else:
        with expires(after, "block", client) as block:
            hang(block.deadline) if last else body(after)

def last_block():
    say("about to hang")
    # Whoever is not going to be watched does not hang. With a table that a server knows it is, even while no
    # server runs.
    if not client._queue.connection.welcomed or kind.startswith("socket-only"):
        client._unavailable = "raise"
    while True:
        try:
            block(last=True)
        except ConnectionError:
            time.sleep(0.1)

def blocks(over=over):
    while not over():
        block()
        if chance.random() < 0.001:
            with expires(0.01, "observed", client, observe=True):
                time.sleep(0.02)
        time.sleep(pause)

def threads():
    crowd = [threading.Thread(target=blocks, args=(told_to_end,), daemon=True) for _ in range(3)]
    for thread in crowd:
        thread.start()
    blocks()
    if not time_to_hang():
        for thread in crowd:
            thread.join()

def forks():
    while not told_to_end():
        last = time_to_hang()
        pid = os.fork()
        if pid == 0:
            last_block() if last else block()
            os._exit(0)
        with expires(60.0, "waiting for a child", client):
            child_ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        told_to_end(10 * pause)

def short_lived():
    while not told_to_end():
        line = another("one block", 0.0 if time_to_hang() else 1e10)
        child_ended(subprocess.run(line).returncode)
        told_to_end(100 * pause)

def execs():
    until = time.monotonic() + chance.uniform(200, 400) * pause
    blocks(lambda: over() or time.monotonic() > until)
    if not over():  # in a block: its deadline passes in the new program
        with expires(1.0, "before exec", client):
            os.execv(sys.executable, another(kind, hangs_at - time.monotonic()))

def one_block():
    if not time_to_hang():
        block()

async def task(own):
    global entries
    while not over():
        entries += 1
        if kind == "grace":
            try:
                async with expires(0.1, "graceful", own, grace=10.0):
                    await asyncio.sleep(chance.choice((0.01, 10.0)))
            except TimeoutError:
                pass
        else:
            after = chance.uniform(2.0, 7.0)
            async with expires(after, "task", own):
                await asyncio.sleep(stay(after))
        await asyncio.sleep(pause)

async def tasks():
    own = AsyncTimerClient()
    await asyncio.gather(*(task(own) for _ in range(3)))
    while time_to_hang() and not own._queue.connection.welcomed:
        with contextlib.suppress(ConnectionError):
            await own.connect()
        await asyncio.sleep(0.1)
    if time_to_hang():
        say("about to hang")
        after, grace = chance.uniform(1.0, 3.0), 0.5 if kind == "grace" else None
        async with expires(after, "hung", own, grace=grace) as block:
            if grace is None and chance.random() < 0.5:
                say("hung", block.deadline)
                await asyncio.Event().wait()
            hang(block.deadline + (grace or 0.0))

if kind in ("async with", "grace"):
    asyncio.run(tasks())
else:
    client = TimerClient(shared=not kind.startswith("socket-only"))
    rounds = {"threads": threads, "fork": forks, "exec": execs, "short-lived": short_lived}
    rounds.get(kind, one_block if kind == "one block" else blocks)()
    if time_to_hang():
        last_block()
say("entries", entries)
"""
)

NEVER = 1e10
"""Seconds after which a healthy worker hangs."""


def join_crew(
    path: str, kind: str, seed: int, *, hangs_after: float = NEVER, pause: float = 0.02
) -> SpawnedWorker:
    """Start a worker.

    Args:
        path: the server's socket.
        kind: one of :data:`KINDS`.
        seed: what is random comes from it.
        hangs_after: seconds from its start.
        pause: seconds between two blocks.
    """
    return spawn_worker(PROGRAM, path, kind, repr(hangs_after), repr(pause), str(seed))
