"""What is written for contributors, compared with what is there.

The laws of this file: a page that describes the package is read as data, so it cannot fall behind; a fact
that has to stand in two files is compared.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"


def sections(page: Path) -> dict[str, list[str]]:
    """The terms that a page defines, by section: each is the line before one that begins with ``:``."""
    found: dict[str, list[str]] = {}
    for section in page.read_text().split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        found[heading] = [lines[number - 1] for number, line in enumerate(lines) if line.startswith(": ")]
    return found


# --- the glossary


def test_the_glossary_is_in_alphabetical_order() -> None:
    for heading, terms in sections(GLOSSARY).items():
        assert terms, f"nothing is explained under {heading!r}"
        assert terms == sorted(terms, key=str.casefold), heading


def test_the_glossary_explains_each_word_once() -> None:
    terms = [word for listed in sections(GLOSSARY).values() for term in listed for word in term.split(", ")]
    twice = {term for term in terms if terms.count(term) > 1}
    assert not twice, f"one thing has one name, and one explanation: {twice}"
