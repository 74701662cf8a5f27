"""The survey of architectures can tell right from wrong."""

from typing import Any

import pytest
from torch import Tensor

from repsim.plans import Plan
from support import survey
from support.architectures import NAMES, SUBJECTS, Subject, build, tiny


def test_a_right_model_has_no_faults() -> None:
    found = survey.examine(Subject("llama"))
    assert {outcome.kind for outcome in found} == {"equal"}
    assert {outcome.check for outcome in found} == {
        "baseline",
        "families",
        "sublayers",
        "log-probabilities",
        "generation",
    }


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = survey.Run._run

    def off(self: survey.Run, plans: list[Plan]) -> dict[Plan, tuple[list[Tensor], Any]]:
        return {
            plan: ([state * 1.001 for state in states], scores)
            for plan, (states, scores) in run(self, plans).items()
        }

    monkeypatch.setattr(survey.Run, "_run", off)
    found = survey.examine(Subject("bert"))
    assert {outcome.kind for outcome in found if outcome.check == "baseline"} == {"wrong"}
    assert all(
        outcome.difference == pytest.approx(1e-3, rel=1e-2)
        for outcome in found
        if outcome.kind == "wrong"
    )


def test_a_model_is_the_same_every_time_and_its_layers_change_states() -> None:
    one, other = (build("gpt2").state_dict() for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)
    assert (
        min(tensor.std() for name, tensor in one.items() if name.endswith("c_proj.weight")) > 0.04
    )


def test_names_are_distinct_and_sizes_small() -> None:
    assert len({subject.name for subject in SUBJECTS}) == len(NAMES.split())
    config = tiny("mixtral")
    assert (config.num_hidden_layers, config.num_local_experts, config.num_key_value_heads) == (
        6,
        4,
        2,
    )
