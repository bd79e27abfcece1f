"""A pool whose only thread waits for what it has handed to the same pool."""

from concurrent.futures import ThreadPoolExecutor

from aiotimer import expires

pool = ThreadPoolExecutor(1)


def grade(tree: list[int]) -> int:
    return sum(pool.map(abs, tree))


with expires(after=1):
    pool.submit(grade, [1, 2]).result()  # here
