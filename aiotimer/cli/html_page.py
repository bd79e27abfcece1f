"""A renderer of pages, about an expiry or a run, as one file of HTML, to be attached to a ticket.

The laws of this file: it says what the page says, line for line; every text is a worker's and is escaped; the
file runs nothing and loads nothing, which its policy has a browser enforce; nothing is wider than a phone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from rich.text import Text

from .._version import __version__
from .page import Row

_STYLES = {"bold": "bold", "dim": "dim", "bold red": "alarm"}
"""The class of a line, by how it is printed."""

_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --dim: #59636e; --label: #0b5c8a;
  --alarm: #b3261e; --line: #d8dee4 }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e9ec; --paper: #14171a; --dim: #9aa4ae;
  --label: #79c0ff; --alarm: #ff8a80; --line: #2d333b }} }}
body {{ margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 0.9rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
h1 {{ margin: 0 0 1rem; font-size: 1.15rem; overflow-wrap: anywhere }}
section {{ display: grid; grid-template-columns: 7rem minmax(0, 1fr); padding: 0.5rem 0;
  border-top: 1px solid var(--line) }}
h2 {{ margin: 0; font-size: inherit; font-weight: normal; color: var(--label) }}
details {{ border-left: 6px solid var(--camp, var(--line)); border-top: 1px solid var(--line);
  padding: 0.3rem 0.6rem }}
summary {{ cursor: pointer; overflow-wrap: anywhere }}
{camps}.culprit summary {{ font-weight: bold; color: var(--alarm) }}
p {{ margin: 0; padding-left: 2ch; text-indent: -2ch; white-space: pre-wrap; overflow-wrap: anywhere }}
.bold, .alarm {{ font-weight: bold }}
.alarm {{ color: var(--alarm) }}
.dim, footer {{ color: var(--dim) }}
footer {{ padding: 0.5rem 0; border-top: 1px solid var(--line) }}
@media (max-width: 40rem) {{ section {{ grid-template-columns: minmax(0, 1fr) }} }}
</style>
</head>
<body>
<h1>{title}</h1>
"""

_FOOT = "<footer>aiotimer {version}</footer>\n</body>\n</html>\n"


_CAMPS = ("#2f7fd1", "#c77700", "#8a4fbf", "#2a9461", "#b5477a", "#6b7a00", "#008c9e", "#8c5a3c")
"""Colours of camps, which are told by their words, too."""


class Fold(NamedTuple):
    """What unfolds when its first line is chosen.

    Attributes:
        summary: that line.
        rows: what it unfolds to, as a page has it.
        camp: a number: equal ones have one colour; None has none.
        marked: it stands out.
    """

    summary: str
    rows: Sequence[Row]
    camp: int | None = None
    marked: bool = False


def html_page(headline: str, rows: Iterable[Row], folds: Iterable[Fold] = ()) -> str:
    """Return a page.

    Args:
        headline: its first line.
        rows: the others, each with its label; those of a label that is "" belong to the row before.
        folds: what comes after them, folded.
    """
    head = _HEAD.format(title=escape(headline), camps=_camps())
    body = [*_sections(rows), *(part for fold in folds for part in _folded(fold))]
    return head + "".join(body) + _FOOT.format(version=__version__)


def _camps() -> str:
    return "".join(f".camp-{number} {{ --camp: {colour} }}\n" for number, colour in enumerate(_CAMPS))


def _folded(fold: Fold) -> Iterator[str]:
    kinds = [f"camp-{fold.camp % len(_CAMPS)}"] if fold.camp is not None else []
    kinds += ["culprit"] if fold.marked else []
    yield f'<details class="{" ".join(kinds)}"><summary>{escape(fold.summary)}</summary>\n'
    yield from _sections(fold.rows)
    yield "</details>\n"


def _sections(rows: Iterable[Row]) -> Iterator[str]:
    is_open = False
    for label, said in rows:
        if label or not is_open:
            yield ("</div></section>\n" if is_open else "") + f"<section><h2>{escape(label)}</h2><div>\n"
            is_open = True
        style = _STYLES.get(str(said.style)) if isinstance(said, Text) else None
        plain = said.plain if isinstance(said, Text) else said
        text = plain.lstrip(" ")
        indented = "\u00a0" * (len(plain) - len(text)) + text  # or a long path would leave its line empty
        begins = f'<p class="{style}">' if style else "<p>"
        yield f"{begins}{escape(indented)}</p>\n"
    if is_open:
        yield "</div></section>\n"
