"""An iteration that does not converge, without a loop of events."""

from aiotimer import expires


def solve(lower: float, upper: float) -> float:
    while upper - lower > 0:  # here
        middle = lower + (upper - lower) / 2  # here
        error = middle * middle - 2.0  # here
        lower = middle if error < 0 else lower  # here
        upper = middle if error > 0 else upper + 1e-9  # here
        upper = max(upper, lower + 1e-12)  # here
    return upper


with expires(after=0.3):
    solve(1.0, 2.0)
