"""A formatter of numbers and moments, for people."""

from __future__ import annotations

from datetime import UTC, datetime


def count(number: int, noun: str) -> str:
    """Return how many there are of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def seconds(value: float) -> str:
    """Return a duration: milliseconds when it is short, minutes and hours when it is long."""
    if abs(value) < 0.0995:  # from here on two digits of milliseconds would be 1e+02
        return f"{1000 * value:.2g} ms" if value else "0 ms"
    if abs(value) < 10:
        return f"{value:.3f} s"
    if abs(value) < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def moment(wall_time: float) -> str:
    """Return a moment in local time, with the zone; "at an unknown time" if the clock cannot say."""
    try:
        return f"{datetime.fromtimestamp(wall_time, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"


def mebibytes(size: int) -> str:
    """Return a size."""
    return f"{size / 2**20:.0f} MiB"
