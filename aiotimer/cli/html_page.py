"""A renderer of the page about one expiry as one file of HTML, to be attached to a ticket.

The laws of this file: it says what the page says, line for line; every text is a worker's and is escaped; the
file runs nothing and loads nothing, which its policy has a browser enforce; nothing is wider than a phone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from rich.text import Text

from .._version import __version__

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


def html_page(headline: str, rows: Iterable[tuple[str, Text | str]]) -> str:
    """Return a page.

    Args:
        headline: its first line.
        rows: the others, each with its label; those of a label that is "" belong to the row before.
    """
    return _HEAD.format(title=escape(headline)) + "".join(_sections(rows)) + _FOOT.format(version=__version__)


def _sections(rows: Iterable[tuple[str, Text | str]]) -> Iterator[str]:
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
