"""What is written for contributors, compared with what is there.

The laws of this file: a page that describes the package is read as data, so it cannot fall behind; a fact
that has to stand in two files is compared.
"""

import ast
import re
import tomllib
from pathlib import Path

import aiotimer

PACKAGE = Path(aiotimer.__file__).parent
ROOT = Path(__file__).parent.parent.parent
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"
DECISIONS = ROOT / "docs" / "explanation" / "decisions.md"
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"


def sections(page: Path) -> dict[str, list[str]]:
    """The terms that a page defines, by section: each is the line before one that begins with ``:``."""
    found: dict[str, list[str]] = {}
    for section in page.read_text().split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        found[heading] = [lines[number - 1] for number, line in enumerate(lines) if line.startswith(": ")]
    return found


def described() -> dict[str, str]:
    """The tree of the architecture page: what it says of each module, as ``room/module``.

    A folder stands for its ``__init__``, and ends in ``/``.
    """
    _, _, rest = ARCHITECTURE.read_text().partition("\n```text\naiotimer/\n")
    tree, _, _ = rest.partition("\n```\n")
    found: dict[str, str] = {}
    room = ""
    for line in tree.splitlines():
        entry = re.fullmatch(r"(  |    )(\w+)(/?) {2,}(\S.*)", line)
        assert entry, f"not a line of the tree: {line!r}"
        indentation, name, is_room, says = entry.groups()
        if len(indentation) == 2:
            room = f"{name}/" if is_room else ""
        else:
            assert room, f"in no room: {line!r}"
            assert not is_room, f"a room in a room: {line!r}"
        name = room if is_room else f"{room}{name}"
        assert name not in found, f"{name} stands there twice"
        found[name] = says
    return found


def defined_in(module: str) -> set[str]:
    """The names that a module defines: functions, classes, and their methods."""
    path = PACKAGE / f"{module}.py"
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body if path.is_file() else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            functions = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            names.update(f"{node.name}.{function.name}" for function in functions)
    return names


# --- the architecture


def test_the_tree_is_that_of_the_package() -> None:
    there = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        there.add(name.removesuffix("__init__") if name.endswith("/__init__") else name)
    told = set(described())
    assert not there - told, f"modules that {ARCHITECTURE.name} does not describe: {sorted(there - told)}"
    assert not told - there, f"modules that do not exist: {sorted(told - there)}"


def test_the_journey_passes_through_functions_that_exist() -> None:
    journey = ARCHITECTURE.read_text().partition("\n## The journey of one deadline\n")[2]
    stations = re.findall(r"^\| `(\w+/\w+)` \| ([^|]+) \|", journey, re.MULTILINE)
    assert len(stations) > 10
    missing = [
        f"{module}: {function}"
        for module, functions in stations
        for function in re.findall(r"`([\w.]+)`", functions)
        if function not in defined_in(module)
    ]
    assert not missing, f"the journey in {ARCHITECTURE.name} is out of date: {missing}"


def test_what_is_said_of_modules_is_said_of_modules_that_exist() -> None:
    rooms = "|".join(name.removesuffix("/") for name in described() if name.endswith("/"))
    for page in (ARCHITECTURE, DECISIONS):
        named = set(re.findall(rf"`((?:{rooms})/\w+)`", page.read_text()))
        assert named, f"{page.name} names no module"
        assert named <= set(described()), f"{page.name}: {sorted(named - set(described()))}"


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
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted = [package for package in groups["lint"] if package.startswith("ruff")]
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
