"""The page as HTML: what it says, and what it never does."""

import re
from html.parser import HTMLParser

from rich.text import Text

from aiotimer.cli.html_page import html_page

HOSTILE = "</p></style><script>alert(1)</script><img src=//evil/x onerror=alert(1)>&lt;'\""


class Reader(HTMLParser):
    """Reads the elements of a page, with their attributes, and what each says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[tuple[str, str]] = []
        self.still_open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.still_open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.still_open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.said.append((self.still_open[-1], data.replace("\u00a0", " ")))


def test_it_says_what_the_page_says_line_for_line() -> None:
    rows: list[tuple[str, Text | str]] = [
        ("why", Text("it waits", "bold red")),
        ("where", "x.py:7"),
        ("", Text("  > 7 | wait()", "bold")),
    ]
    read = Reader(html_page("worker 7 was reaped", rows))
    assert not read.still_open
    assert [said for said in read.said if said[0] in ("h1", "h2", "p")] == [
        ("h1", "worker 7 was reaped"),
        *(("h2", "why"), ("p", "it waits"), ("h2", "where"), ("p", "x.py:7"), ("p", "  > 7 | wait()")),
    ]
    assert [attrs.get("class") for tag, attrs in read.elements if tag == "p"] == ["alarm", None, "bold"]


def test_a_row_without_a_label_may_come_first() -> None:
    assert not Reader(html_page("", [("", "detail"), ("why", "w")])).still_open
    assert not Reader(html_page("nothing is known", [])).still_open


def test_whatever_a_worker_wrote_is_text() -> None:
    read = Reader(html_page(HOSTILE, [(HOSTILE, HOSTILE), ("", Text(HOSTILE, HOSTILE.split("<")[0]))]))
    assert {tag for tag, _attrs in read.elements} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "section", "h2", "div", "p", "footer"),
    }  # fmt: skip
    assert "".join(text for tag, text in read.said if tag == "h1") == HOSTILE


def test_it_runs_nothing_and_loads_nothing() -> None:
    page = html_page("worker 7", [("why", "w")])
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?:|<(script|link|img|iframe|object|form|base)\b", page)
    assert not {name for _tag, attrs in Reader(page).elements for name in attrs} & {"src", "href", "srcdoc"}
