"""The core of the package: what timers are and when to act on them, and nothing that touches the world.

The law of this package: no I/O, no clock, no thread, no log line. ``now`` is always an argument, in
``CLOCK_MONOTONIC`` seconds; decisions are returned, and the shell around the core carries them out.
"""
