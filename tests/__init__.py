"""The tests. A package, so that `from tests.support import ...` can mean nothing else."""
