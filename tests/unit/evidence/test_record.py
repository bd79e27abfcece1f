"""Records: one shape, whoever wrote it."""

import json
from typing import Any

import pytest

from aiotimer.evidence import NO_FINDINGS
from aiotimer.evidence.record import Record


def test_its_json_gives_it_back() -> None:
    found = NO_FINDINGS._replace(verdict="v", where="w", tasks=[{}], stacks=[{}], probes={"proc": "1 s"})
    whole = Record(
        "i", "reaped", "reaped", 1.0, 7, "n", "s", 2.0, exact=True, entered=0.5, ran_s=2, timers=[{}]
    )
    whole = whole.with_findings(found._replace(process={"state": "S", "later": 1}))
    assert Record.from_json(json.loads(json.dumps(whole.as_json()))) == whole
    assert (whole.verdict, whole.where, whole.tasks, whole.probes) == ("v", "w", [{}], {"proc": "1 s"})


def test_no_key_is_ever_absent() -> None:
    nothing = Record.from_json({}).as_json()
    assert nothing == Record().as_json() == Record().with_findings(NO_FINDINGS).as_json()
    assert Record.from_json({"process": {"state": "S"}}).process.keys() == Record().process.keys()


@pytest.mark.parametrize(
    "odd",
    [{"pid": "7"}, {"time": "now"}, {"tasks": {"a": 1}}, {"scope": None}, {"process": []}, {"of a later": 1}],
)
def test_what_cannot_be_right_is_not_known(odd: dict[str, Any]) -> None:
    assert Record.from_json(odd) == Record()


def test_a_summary_has_all_but_what_is_long() -> None:
    whole = Record("i", verdict="v", timers=[{}], tasks=[{}], stacks=[{}], process={"state": "S"})
    assert whole.summary() == Record("i", verdict="v", timers=[{}])
