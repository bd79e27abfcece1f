import socket
import time
from concurrent.futures import ThreadPoolExecutor

from aiotimer import expires


def fetch_reward(server: socket.socket) -> bytes:
    return server.recv(1)  # here


def grade(server: socket.socket) -> bytes:
    with expires(1, "reward"):
        return fetch_reward(server)


def grade_well() -> None:
    while True:
        with expires(60, "reward"):
            time.sleep(0.01)


answers, silent = socket.socketpair()
with ThreadPoolExecutor(4) as pool:
    for _ in range(3):
        pool.submit(grade_well)
    pool.submit(grade, answers).result()
