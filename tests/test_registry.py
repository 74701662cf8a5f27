"""Analyses are found by their entry points, and say of which kind they are."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import xarray as xr

from repsim.errors import RepsimError
from repsim.registry import (
    AnalysisKind,
    draws_together,
    find_analysis,
    installed,
    keywords_of,
    kind_of,
    load_analysis,
    option_name,
    statistics_of,
    summarise,
    takes_store,
)
from support.cli import plug_in

CODE = "def compute(capture, *, plan='baseline'):\n    pass\ndef plot(found):\n    pass\n"


def module_with(**names: Any) -> ModuleType:
    module = ModuleType("analysis")
    vars(module).update(names)
    return module


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({}, AnalysisKind.STATES),
        ({"READS": "a capture"}, AnalysisKind.STATES),
        ({"READS": "scores"}, AnalysisKind.SCORES),
        ({"KIND": AnalysisKind.LOGPROBS}, AnalysisKind.LOGPROBS),
        ({"KIND": AnalysisKind.STATES, "READS": "scores"}, AnalysisKind.STATES),
        ({"KIND": "a constant of the module's own"}, AnalysisKind.STATES),
    ],
)
def test_kinds_are_declared_and_modules_from_before_there_were_kinds_still_work(
    names: dict[str, Any], kind: AnalysisKind
) -> None:
    assert kind_of(module_with(**names)) is kind


def test_what_a_kind_reads() -> None:
    of_scores = {AnalysisKind.SCORES, AnalysisKind.SCORES_TOGETHER}
    assert {kind.reads for kind in of_scores} == {"scores"}
    assert {kind.reads for kind in {*AnalysisKind} - of_scores} == {"a capture"}
    assert {kind for kind in AnalysisKind if kind.takes_stores_together} == {
        AnalysisKind.SCORES_TOGETHER
    }
    assert not AnalysisKind.STATES.takes_plans_together
    assert AnalysisKind.LOGPROBS.takes_plans_together


def test_every_analysis_takes_what_its_kind_is_called_with() -> None:
    for name, entry in installed().items():
        module = load_analysis(entry)
        kind, keywords = kind_of(module), {item.name: item for item in keywords_of(module.compute)}
        assert ("plan" in keywords) == (kind is not AnalysisKind.SCORES), name
        if "plan" in keywords:
            assert isinstance(keywords["plan"].default, str) != kind.takes_plans_together, name


def test_a_keyword_that_takes_a_second_store() -> None:
    keywords = {item.name: item for item in keywords_of(find_analysis("similarity").compute)}
    assert [name for name, item in keywords.items() if takes_store(item)] == ["with_"]
    assert option_name("with_") == "with"


def test_the_closest_analysis_is_named() -> None:
    with pytest.raises(RepsimError, match=r"no such analysis 'cosines'; did you mean cosine\?"):
        find_analysis("cosines")


def test_an_analysis_of_another_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, "outside", CODE)
    monkeypatch.syspath_prepend(tmp_path)
    module = find_analysis("outside")
    assert kind_of(module) is AnalysisKind.STATES
    assert not draws_together(module)
    assert [item.name for item in keywords_of(module.compute)] == ["plan"]


def test_a_summary_is_optional() -> None:
    result = xr.Dataset({"norm": ("state", [3.0, 4.0])})
    assert summarise(module_with(), result) is None
    table = summarise(module_with(summarise=xr.Dataset.to_dataframe), result)
    assert table is not None
    assert table["norm"].tolist() == [3, 4]


def test_a_summary_that_is_no_function_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, "flat", f"{CODE}summarise = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RepsimError, match="'flat' of flat-package is broken: its summarise is no"):
        find_analysis("flat")


def test_statistics_have_the_name_of_their_analysis() -> None:
    assert [statistic.name for statistic in statistics_of(["norms", "norms"])] == ["norms.sum"]
    with pytest.raises(RepsimError, match="clusters': it needs the states themselves"):
        statistics_of(["clusters"])
