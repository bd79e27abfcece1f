"""The kernel, as both sides ask it: processes, signals, paths, table files."""
