"""A regular expression that backtracks for ever."""

import re

from aiotimer import expires


@expires(after=0.3)
def parse(text: str) -> re.Match[str] | None:
    return re.match(r"(a+)+$", text)  # here


parse("a" * 60 + "b")
