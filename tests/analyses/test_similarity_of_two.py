"""Every state of one capture with every state of another: against the pair functions, the square
matrix of one capture, and its own transpose.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import repsim
from repsim import measures
from repsim.analyses import similarity
from repsim.errors import RepsimError
from repsim.stats.shared_tokens import draw_shared_tokens
from support.captures import TextCapture, drop_sinks, pair_of_captures, sample_states

Array = NDArray[Any]

NUMBERS = ("similarity", "standard_error", "low", "high")
PAIR: dict[str, Any] = {
    "cka": measures.debiased_linear_cka,
    "biased-cka": measures.linear_cka,
    "rbf-cka": lambda x, y: measures.rbf_cka(x, y, debiased=True),
    "rsa": measures.rsa,
    "mutual-knn": measures.mutual_knn,
    "cknna": measures.cknna,
    "procrustes": measures.procrustes_similarity,
    "cca": measures.mean_cca,
    "svcca": measures.svcca,
    "pwcca": lambda x, y: (measures.pwcca(x, y) + measures.pwcca(y, x)) / 2,
}


@pytest.mark.parametrize("measure", PAIR)
def test_equals_the_pair_function_on_the_same_items(measure: Any) -> None:
    first, second = pair_of_captures()
    (here, there), _ = draw_shared_tokens(first, second, "baseline", 4096)
    assert here.states.shape[1] == 14 * 7
    expected = [[PAIR[measure](a, b) for b in there.states] for a in here.states]
    result = similarity.compute(first, with_=second, measure=measure, permutations=0)
    assert result["similarity"].shape == (3, 4)
    assert_allclose(result["similarity"], expected, atol=1e-6)


@pytest.mark.parametrize("measure", [*PAIR, "minibatch-cka"])
def test_a_capture_with_itself_is_its_square(measure: Any) -> None:
    first, _ = pair_of_captures()
    ask: dict[str, Any] = {"measure": measure, "resamples": 50}
    ask |= {} if measure == "minibatch-cka" else {"permutations": 3}
    square, both = similarity.compute(first, **ask), similarity.compute(first, with_=first, **ask)
    for name in NUMBERS:
        assert_allclose(both[name], square[name], atol=1e-9)
    if measure != "minibatch-cka":
        above = np.triu_indices(3)
        assert_allclose(
            both["null_mean"].values[above], square["null_mean"].values[above], atol=1e-6
        )


@pytest.mark.parametrize("measure", [*PAIR, "minibatch-cka"])
def test_changing_places_transposes(measure: Any) -> None:
    first, second = pair_of_captures()
    ask: dict[str, Any] = {"measure": measure, "resamples": 50}
    ask |= {} if measure == "minibatch-cka" else {"permutations": 0}
    there = similarity.compute(first, with_=second, **ask)
    back = similarity.compute(second, with_=first, **ask)
    for name in NUMBERS:
        assert_allclose(there[name], back[name].T, atol=1e-9)


def test_minibatch_cka_equals_a_loop_over_samples() -> None:
    first, second = pair_of_captures(samples=5, tokens=9)
    cross, ours, theirs = np.zeros((3, 4)), np.zeros(3), np.zeros(4)
    for a, b in zip(sample_states(first), sample_states(second), strict=True):
        assert drop_sinks(a).shape[1] == drop_sinks(b).shape[1] == 8
        grams, others = ([view @ view.T for view in drop_sinks(each)] for each in (a, b))
        cross += [[8 * measures.hsic(x, y) for y in others] for x in grams]
        ours += [8 * measures.hsic(x, x) for x in grams]
        theirs += [8 * measures.hsic(y, y) for y in others]
    result = similarity.compute(first, with_=second, measure="minibatch-cka")
    assert_allclose(result["similarity"], cross / np.sqrt(np.outer(ours, theirs)), atol=1e-10)
    assert (result.attrs["tokens"], result.attrs["samples"]) == (40, 5)


@pytest.mark.parametrize("measure", ["cka", "mutual-knn", "procrustes"])
def test_the_influence_is_what_leaving_a_sample_out_does(
    monkeypatch: pytest.MonkeyPatch, measure: Any
) -> None:
    """To first order, and in sum to nothing."""
    calls: list[Array] = []
    linearised = similarity.stats.linearised

    def record(value: Array, influence: Array) -> Any:
        calls.append(influence)
        return linearised(value, influence)

    monkeypatch.setattr(similarity.stats, "linearised", record)
    first, second = pair_of_captures(samples=30)
    similarity.compute(first, with_=second, measure=measure, resamples=2, permutations=0)
    (influence,) = calls
    assert influence.shape == (30, 3, 4)
    assert_allclose(influence.sum(0), 0, atol=1e-10)
    if measure == "mutual-knn":  # of which the neighbours change as well
        return
    (here, there), _ = draw_shared_tokens(first, second, "baseline", 4096)
    for sample in (0, 7):
        kept = np.flatnonzero(here.sample != sample)
        without = PAIR[measure](here.states[1][kept], there.states[2][kept])
        whole = PAIR[measure](here.states[1], there.states[2])
        assert whole - without == pytest.approx(influence[sample, 1, 2], abs=3e-3)


def test_what_is_related_stands_out_of_the_null() -> None:
    first, second = pair_of_captures(samples=30)
    second.array[2] = np.random.default_rng(9).normal(size=second.array[2].shape)
    result = similarity.compute(first, with_=second, permutations=49, resamples=20)
    p = result["p_value"].values
    assert p.shape == (3, 4)
    assert (p[:, [0, 1, 3]] == 1 / 50).all()
    assert (p[:, 2] > 0.1).all()
    assert_allclose(result["null_mean"], 0, atol=0.02)


def test_texts_of_one_capture_only_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = pair_of_captures()
    keys = [*second.samples.values[:10], "w", "x", "y", "z"]
    other = TextCapture(second.array, second.sizes, keys)
    result = similarity.compute(first, with_=other, permutations=0)
    some = [TextCapture(each.array[:, :80], (8,) * 10, keys[:10]) for each in (first, second)]
    expected = similarity.compute(some[0], with_=some[1], permutations=0)
    assert_array_equal(result["similarity"], expected["similarity"])
    attrs = result.attrs
    assert (attrs["left_out_samples"], attrs["left_out_samples_other"]) == (4, 4)
    assert "texts that only one capture has are left out: 4 of this one, 4 of the other" in (
        caplog.text
    )


def test_names() -> None:
    first, second = pair_of_captures()
    second.identity = {**second.identity, "model": "sculptor"}
    result = similarity.compute(first, with_=second, permutations=2)
    assert result["layer"].values.tolist() == ["embed", "0", "1"]
    assert result["layer_other"].values.tolist() == ["embed", "0", "1", "2"]
    assert (result.attrs["model"], result.attrs["model_other"]) == ("painter", "sculptor")
    table = similarity.summarise(result)
    best = result["similarity"].values.argmax(1)
    assert table["layer"].tolist() == ["embed", "0", "1"]
    assert table["layer_other"].tolist() == result["layer_other"].values[best].tolist()
    assert_allclose(table["similarity"], result["similarity"].max("state_other"))
    figure: Any = similarity.plot(result)
    (dots,) = figure.axes[0].lines
    assert dots.get_xdata().tolist() == best.tolist()
    assert figure.axes[0].get_ylabel() == "state of painter, after layer"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"measure": "cca", "items": 14}, "14 items for 6 and 9 components: correlations of 1"),
        ({"measure": "minibatch-cka", "items": 14}, "holds no items to shuffle"),
        ({"measure": "mutual-knn", "neighbours": 500}, "500 neighbours of 98 items"),
    ],
)
def test_options_that_do_not_fit(options: Any, says: str) -> None:
    first, second = pair_of_captures()
    with pytest.raises(RepsimError, match=says):
        similarity.compute(first, with_=second, **options)


def test_a_state_that_never_changes() -> None:
    first, second = pair_of_captures()
    second.array[1] = 1.0
    for measure in ("cka", "procrustes", "minibatch-cka"):
        result = similarity.compute(first, with_=second, measure=measure, resamples=5)
        assert_array_equal(np.isnan(result["similarity"].values).sum(0), [0, 3, 0, 0])


def test_real_captures(tiny_folder: Path, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """One model under another --limit and --max-tokens; and two tokenizers, one state per text."""
    ask: dict[str, Any] = {"plan": ["baseline", "skip:start=1"]}
    long, short = (
        repsim.capture(
            str(tiny_folder), limit=limit, max_tokens=most, out=tmp_path / f"{most}", **ask
        )
        for limit, most in ((6, 30), (9, 20))
    )
    result = similarity.compute(long, with_=short, plan="skip:start=1", permutations=0)
    # A decoder does not look ahead, so that the tokens' states are the same in both.
    assert_allclose(np.diagonal(result["similarity"].values), 1, atol=1e-6)
    assert result.attrs["left_out_samples_other"] == 3

    llama, bert = (
        repsim.capture(str(folder), limit=9, max_tokens=20, tokens="mean", out=tmp_path / name)
        for name, folder in (("llama", tiny_folder), ("bert", tiny_encoder_folder))
    )
    result = similarity.compute(llama, with_=bert, sinks=True, permutations=0)
    states = []
    for capture in (llama, bert):
        order = np.argsort(capture.samples.values)
        states.append(capture.hidden().values[:, order].astype(float))
    expected = [[measures.debiased_linear_cka(a, b) for b in states[1]] for a in states[0]]
    assert_allclose(result["similarity"], expected, atol=1e-6)
    with pytest.raises(RepsimError, match="tiny-llama and tiny-bert have different tokenizers"):
        similarity.compute(long, with_=bert)
