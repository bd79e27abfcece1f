"""Draws the state machine of ``aiotimer/_core/reaping.py`` from its table.

    python docs/draw_reaping.py

writes ``docs/explanation/reaping.svg``. A test compares the two, so that the drawing is never out of date.
Where the states stand is chosen here; which arrows there are, and their names, are read from the table.
"""

from __future__ import annotations

from math import hypot
from pathlib import Path

from aiotimer._core.reaping import MOVES, State

PICTURE = Path(__file__).parent / "explanation" / "reaping.svg"

PLACES = {
    State.SPARED: (1.55, 0), State.WATCHED: (0, 0.8), State.DUE: (1, 0.8), State.ASKED: (2, 0.8),
    State.GATHERING: (3, 0), State.CONFIRMING: (3, 1), State.HELD: (0, 2), State.RESUMED: (0.9, 2),
    State.REFUSED: (1.8, 1.75), State.SIGNALLED: (3.8, 1.75), State.KILLED: (3, 2.5),
    State.UNKILLABLE: (2, 2.7), State.DEAD: (0.95, 2.7),
}  # fmt: skip
"""Column and row of each state."""

COLUMN, ROW, LEFT, TOP = 225, 150, 90, 45
WIDTH, HEIGHT = 118, 34

COLOURS = {"WATCHED": "#dff0d8", "SPARED": "#dff0d8", "DEAD": "#dddddd", "KILLED": "#f4cccc"}


RARE = {
    (State.WATCHED, State.CONFIRMING), (State.HELD, State.CONFIRMING), (State.RESUMED, State.CONFIRMING),
    (State.REFUSED, State.CONFIRMING), (State.WATCHED, State.HELD), (State.WATCHED, State.ASKED),
    (State.CONFIRMING, State.WATCHED), (State.CONFIRMING, State.DUE), (State.CONFIRMING, State.REFUSED),
    (State.SIGNALLED, State.WATCHED), (State.SIGNALLED, State.REFUSED), (State.SIGNALLED, State.DEAD),
    (State.CONFIRMING, State.DEAD), (State.SIGNALLED, State.DUE), (State.SIGNALLED, State.SPARED),
}  # fmt: skip
"""Arrows that are drawn faintly: something had gone before, or the owner acts without being asked."""


def arrows() -> dict[tuple[State, State], list[str]]:
    """Return the arrows from one state to another, with the names of the events that lead along them."""
    found: dict[tuple[State, State], list[str]] = {}
    for before, moves in MOVES.items():
        for event, afters in moves.items():
            for after in afters:
                if after is not before:
                    found.setdefault((before, after), []).append(event.__name__)
    return found


def draw() -> str:
    """Return the drawing."""
    at = {state: (LEFT + COLUMN * x, TOP + ROW * y) for state, (x, y) in PLACES.items()}
    lines, labels = [], []
    there = arrows()
    for (before, after), events in there.items():
        start, end, middle = _ends(at[before], at[after], bend=(after, before) in there)
        faint = ' stroke="#bbb" stroke-dasharray="4 3"' if (before, after) in RARE else ""
        lines.append(
            f'<path{faint} d="M{start[0]:.0f},{start[1]:.0f} '
            f'Q{middle[0]:.0f},{middle[1]:.0f} {end[0]:.0f},{end[1]:.0f}"/>'
        )
        x = 0.25 * start[0] + 0.5 * middle[0] + 0.25 * end[0]
        y = 0.25 * start[1] + 0.5 * middle[1] + 0.25 * end[1]
        if (before, after) in RARE:
            continue
        text = ", ".join(events)
        labels.append(
            f'<rect x="{x - 3.1 * len(text) - 2:.0f}" y="{y - 8:.0f}" '
            f'width="{6.2 * len(text) + 4:.0f}" height="14"/>'
            f'<text x="{x:.0f}" y="{y + 3:.0f}" fill="#333">{text}</text>'
        )
    boxes = [
        f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="8" '
        f'fill="{COLOURS.get(state.name, "#e8eef7")}"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" stroke="none" fill="#111">{state.value}</text>'
        for state, (x, y) in at.items()
    ]
    width = max(x for x, _ in at.values()) + LEFT
    height = max(y for _, y in at.values()) + TOP
    return _FRAME.format(
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        lines="\n    ".join(lines),
        labels="\n    ".join(labels),
        boxes="\n    ".join(boxes),
    )


def _ends(
    a: tuple[float, float], b: tuple[float, float], *, bend: bool
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """Return where an arrow leaves one box and meets the other, and the point that it bends towards."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = hypot(dx, dy)
    aside = 26.0 if bend else 6.0
    middle = ((a[0] + b[0]) / 2 - dy / length * aside, (a[1] + b[1]) / 2 + dx / length * aside)
    return _border(a, middle), _border(b, middle), middle


def _border(box: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Return where the line from the middle of a box to a point crosses its border."""
    dx, dy = towards[0] - box[0], towards[1] - box[1]
    share = min(
        (WIDTH / 2 + 3) / abs(dx) if dx else float("inf"), (HEIGHT / 2 + 3) / abs(dy) if dy else float("inf")
    )
    return box[0] + dx * share, box[1] + dy * share


_FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"
     role="img" aria-labelledby="title desc" font-family="sans-serif" text-anchor="middle">
  <title id="title">The states of a reaping</title>
  <desc id="desc">Thirteen states of one worker, and an arrow for every event that leads from one to another.
  From each state an arrow that is not drawn leads to dead.</desc>
  <defs>
    <marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
      <path d="M0,0 L8,4 L0,8 z" fill="#555"/>
    </marker>
  </defs>
  <rect width="100%" height="100%" fill="white"/>
  <g fill="none" stroke="#555" stroke-width="1.2" marker-end="url(#head)">
    {lines}
  </g>
  <g fill="white" fill-opacity="0.85" font-size="11">
    {labels}
  </g>
  <g stroke="#445" font-size="14">
    {boxes}
  </g>
</svg>
"""

if __name__ == "__main__":
    PICTURE.write_text(draw())
