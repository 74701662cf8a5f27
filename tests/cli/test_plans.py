"""`repsim plans`."""

import pytest

from repsim.plans import FAMILIES
from support.cli import Call


def test_plans_lists_and_draws(call: Call) -> None:
    listed = call("plans").stdout
    for name in ("skip:start=", "looped_parallel:start=", "painters", "dropouts"):
        assert name in listed
    drawn = call("plans", "show", "looped_parallel:start=10,loops=3").stdout
    assert "0-10, (11|12|13|14|15|16|17|18|19)*3, 20-29" in drawn
    assert "steps 1-11: layers 0 to 10" in drawn
    counted = call("plans", "show", "skip:start=0..1", "--layers", 6).stdout
    assert "2 plans" in counted
    assert "4 steps; 4 trie nodes, the root included" in counted  # 0 and 0 1 5 share layer 0


def test_lines_that_go_into_a_pipe_are_not_wrapped(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    listed = call("plans").stdout.splitlines()
    for family in FAMILIES.values():
        (line,) = [line for line in listed if line.startswith(f"{family.usage} ")]
        assert line.rstrip().split("  ")[-1].strip() == family.summary
    drawn = call(
        "plans", "show", ", ".join(map(str, range(0, 100, 2))), "--layers", 100
    ).stdout.splitlines()
    (summary,) = [line for line in drawn if "never run" in line]
    assert summary.endswith("95, 97, 99")
