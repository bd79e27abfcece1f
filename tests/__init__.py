"""The tests. A package, so that `from tests.fakes.server import ...` can mean nothing else."""
