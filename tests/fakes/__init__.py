"""What stands in for the world in tests: memory, clocks, servers, workers, interruptions."""
