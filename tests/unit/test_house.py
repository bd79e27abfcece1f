"""What is written for contributors, compared with what is there.

The laws of this file: a page that describes the package is read as data, so it cannot fall behind; a fact
that has to stand in two files is compared.
"""

import re
import tomllib
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


# --- what runs elsewhere


def test_the_workflow_runs_what_every_change_has_to_pass() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"^ *- run: (.*)$", workflow, re.MULTILINE) == ["bash .ci/run"]


def test_the_workflow_has_every_python_that_is_tested() -> None:
    makefile = (ROOT / "Makefile").read_text()
    versions = re.findall(r"^VERSIONS +\?= (.*)$", makefile, re.MULTILINE)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert [" ".join(sorted(re.findall(r"^ +(3\.\d+)$", workflow, re.MULTILINE)))] == versions


def test_the_hooks_use_the_linter_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [package for package in project["optional-dependencies"]["lint"] if package.startswith("ruff")]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"additional_dependencies: \[\"(.*)\"\]", hooks)) == set(wanted)


def test_the_reports_that_are_asked_for_can_be_made() -> None:
    """The issue form names commands, which may be renamed."""
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "report.yml").read_text()
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text()
    commands = set(re.findall(r"`aiotimer (\w+) --json", form))
    assert {"why", "dump"} <= commands
    for command in commands:
        section = reference.partition(f"\n## aiotimer {command}\n")[2].partition("\n## ")[0]
        assert "\n`--json`\n" in section, command
