"""Take one history again: ``python -m tests.simulator SEED [STEPS [VARIANT]]``.

A variant is one of ``broken.py``.
"""

import sys

from .broken import CASES
from .simulation import Failure, Simulation, Variant

if __name__ == "__main__":
    seed, length, name = [*sys.argv[1:], *("4000", "")[len(sys.argv) - 2 :]]
    try:
        Simulation(int(seed), int(length), CASES[name].variant if name else Variant()).run()
    except Failure as failure:
        sys.exit(str(failure))
