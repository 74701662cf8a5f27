"""The verdict's arithmetic, and that a replay which is not the model is refused everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repsim
from repsim.data.batching import Batch
from repsim.data.packing import pack_prefix_trees
from repsim.errors import RepsimError
from repsim.models import Model
from repsim.models.forward import probe_batch
from repsim.models.proof import (
    PROOF_TOKENS,
    ReplayProof,
    batch_kind,
    excerpt,
    first_divergence,
    relative_distance,
    replay_rounding,
)
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie
from support.models import (
    ARCHITECTURES,
    FSMT,
    INKLING2,
    MORE,
    VOCABULARY,
    T,
    batch_of,
    cached_model,
    make,
    model_of,
)
from support.oracles import windows_that_share

BASELINE = PlanTrie.build([Plan.from_steps(range(T))])
EPS = torch.finfo(torch.float32).eps


def test_distance_is_a_share_of_the_models_own_norm() -> None:
    own = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert relative_distance(own + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), own) == pytest.approx(
        0.1
    )
    assert relative_distance(own, own) == 0


def test_what_is_not_finite_in_both_is_equal_and_in_one_is_not() -> None:
    own = torch.tensor([1.0, torch.inf, torch.nan])
    assert relative_distance(own.clone(), own) == 0
    assert not relative_distance(torch.tensor([1.0, 2.0, torch.nan]), own) <= 1


def test_the_first_layer_beyond_rounding_is_named() -> None:
    allowed = [replay_rounding(torch.float32, layer) for layer in (1, 2, 3)]
    assert allowed == pytest.approx([4 * EPS, 4 * EPS * 2**0.5, 4 * EPS * 3**0.5])
    assert first_divergence(allowed, torch.float32) is None
    assert first_divergence([0.0, allowed[1] * 1.1, 1.0], torch.float32) == 1
    assert first_divergence([0.0, torch.nan, 0.0], torch.float32) == 1
    assert first_divergence([0.0, 3e-3, 0.0], torch.float32, noise=1e-3) is None
    assert first_divergence([0.0, 5e-3, 0.0], torch.float32, noise=1e-3) == 1


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [((300, 300), (1, PROOF_TOKENS)), ((9,) * 9, (1, 9)), ((1, 1, 1), (2, 1)), ((1,), (1, 1))],
)
def test_an_excerpt_without_padding(lengths: tuple[int, ...], shape: tuple[int, int]) -> None:
    batch = batch_of(lengths)
    small = excerpt(batch)
    assert batch_kind(small) == "plain"
    assert small.token_ids.shape == shape
    assert (small.token_ids == batch.token_ids[: shape[0], : shape[1]]).all()


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [((300, 200), [24, 16]), ((9, 7, 4), [9, 6]), ((2, 1), [2, 1, 1]), ((5, 4, 4, 4, 4), [5, 3])],
)
def test_an_excerpt_with_padding_has_other_numbers_of_rows_and_positions(
    lengths: tuple[int, ...], rows: list[int]
) -> None:
    small = excerpt(batch_of(lengths))
    assert batch_kind(small) == "padded"
    assert small.mask.sum(1).tolist() == rows
    assert small.mask.shape[0] != small.mask.shape[1]


def test_an_excerpt_of_trees_keeps_what_its_tokens_see() -> None:
    (batch,) = pack_prefix_trees(windows_that_share(), 0, overhead=20, waste=0.5).batches
    small = excerpt(batch)
    assert batch_kind(small) == "trees"
    assert small.attention_mask is not None
    assert small.attention_mask.any(-1).all()
    assert small.tokens <= PROOF_TOKENS


def test_a_proof_covers_batches_of_a_kind_that_are_not_much_longer() -> None:
    proof = ReplayProof().with_batch(batch_of((9,)), 3e-7)
    assert proof.covers(batch_of((18, 18)))
    assert not proof.covers(batch_of((19,)))
    assert not proof.covers(batch_of((9, 7)))
    assert proof.with_batch(batch_of((200,)), 0.0).covers(batch_of((2000,)))


def test_batches_of_one_position_prove_nothing_of_longer_ones() -> None:
    """There samples and positions cannot be told apart."""
    assert not ReplayProof().with_batch(batch_of((1,)), 0.0).covers(batch_of((2, 2)))


def test_what_a_proof_says() -> None:
    proof = ReplayProof().with_batch(batch_of((9,)), 3e-7)
    assert proof.verdict.text == "proven to 3e-07 (plain)"
    assert (
        proof.with_batch(batch_of((9, 7)), 1e-7).with_logits(0.0).verdict.text
        == "proven to 3e-07 (plain, padded, logits)"
    )
    assert (
        ReplayProof().with_batch(batch_of((9,)), 0.0).verdict.text == "proven bit for bit (plain)"
    )


# Planted faults


def plant(model: Model, layer: int, size: float, *, padded: bool = False) -> None:
    """Plants a layer whose MLP gives more while the model's own forward runs, and only then.

    Args:
        model: is changed.
        layer: which layer.
        size: the share by which its MLP gives more.
        padded: only on batches with padding.
    """
    inside = False

    def enter(_module: nn.Module, _args: object, inputs: dict[str, Tensor]) -> None:
        nonlocal inside
        inside = not (padded and inputs["attention_mask"].all())

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    def swell(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output * (1 + size) if inside else output

    model.module.register_forward_pre_hook(enter, with_kwargs=True)
    model.module.register_forward_hook(leave, always_call=True)
    model.stack.layers[layer].mlp.register_forward_hook(swell)


@pytest.mark.parametrize("lengths", [(9, 7, 4), (9, 9)], ids=["padded", "plain"])
@pytest.mark.parametrize("size", [0.5, 1e-3])
def test_a_layer_that_replays_otherwise_is_refused_by_name(
    lengths: tuple[int, ...], size: float
) -> None:
    model = make("llama")
    plant(model, 3, size)
    states: list[object] = []
    with pytest.raises(
        RepsimError,
        match=r"llama: replayed layers are not the model: at layer 3 .* cannot be traced",
    ):
        Tracer(model).run(BASELINE, [batch_of(lengths)], states.append)
    assert not states


def test_a_fault_in_a_later_kind_of_batch_is_found() -> None:
    """Each kind is proven before its first batch runs."""
    model = make("llama")
    plant(model, 2, 0.1, padded=True)
    tracer = Tracer(model)
    tracer.run(BASELINE, [batch_of((9, 9))], lambda _: None)
    with pytest.raises(RepsimError, match=r"at layer 2 .*padded batch"):
        tracer.run(BASELINE, [batch_of((9, 7))], lambda _: None)


def test_logits_that_use_more_than_the_last_state_are_refused() -> None:
    """States can be captured; log-probabilities cannot be made of them."""
    model = make("llama")
    embedded: list[Tensor] = []
    model.module.model.embed_tokens.register_forward_hook(
        lambda _m, _a, output: embedded.append(output)
    )
    model.module.model.norm.register_forward_hook(
        lambda _m, _a, output: output + 0.1 * embedded[-1]
    )
    tracer = Tracer(model)
    states: list[object] = []
    tracer.run(BASELINE, [batch_of((9, 7))], states.append)
    assert len(states) == T + 1
    with pytest.raises(RepsimError, match=r"leaves layer 5 .* without --logprobs"):
        tracer.run(BASELINE, [batch_of((9, 7))], lambda _: None, logprobs=True)


def test_block_residuals_that_the_models_loop_makes_are_refused() -> None:
    """Inkling 2's loop collects states of earlier blocks; no layer hands them on."""
    with pytest.raises(RepsimError, match=r"at layer [0-9] their states differ"):
        Tracer(model_of(*INKLING2)).run(BASELINE, [batch_of((9, 9))], lambda _: None)


@pytest.mark.parametrize("lengths", [(9,) * 9, (2, 2), (9, 7, 4)])
def test_models_that_swap_samples_and_positions_are_refused(lengths: tuple[int, ...]) -> None:
    """Also where a batch has as many samples as positions."""
    model = model_of(*FSMT, stack="encoder.layers")
    with pytest.raises(RepsimError, match="takes states of shape"):
        Tracer(model).run(BASELINE, [batch_of(lengths)], lambda _: None)


def test_random_forwards_are_no_fault_of_the_replay() -> None:
    """A model that differs from itself by more than rounding is compared with that."""
    model, generator = make("llama"), torch.Generator().manual_seed(0)

    def jitter(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output + 1e-4 * output.norm() / output.numel() ** 0.5 * torch.randn(
            output.shape, generator=generator
        )

    model.stack.layers[1].mlp.register_forward_hook(jitter)
    tracer = Tracer(model)
    tracer.run(BASELINE, [batch_of((9, 9))], lambda _: None)
    assert 1e-6 < tracer.proof.error < 1e-3


# In stores


def test_a_capture_keeps_the_proof_as_it_grows(tiny_folder: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "texts.txt", tmp_path / "capture.zarr"
    corpus.write_text("the cat sat on the mat\nthe cat sat on\nthe cat\n")
    found = repsim.capture(str(tiny_folder), corpus=corpus, out=out, logprobs=True)
    assert found.info["replay"].startswith("proven")
    assert found.info["replay"].endswith("logits)")
    grown = repsim.capture(
        str(tiny_folder), corpus=corpus, out=out, logprobs=True, plan="skip:start=1", append=True
    )
    assert grown.info["replay"].startswith("proven")


def test_a_capture_of_a_faulty_replay_leaves_no_store(tiny_folder: Path, tmp_path: Path) -> None:
    model = repsim.models.load(str(tiny_folder))
    plant(model, 4, 0.1)
    with pytest.raises(RepsimError, match="at layer 4"):
        repsim.capture(model, limit=3, out=tmp_path / "capture.zarr")
    assert not (tmp_path / "capture.zarr" / "zarr.json").exists()


def test_an_evaluation_is_proven_or_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = repsim.models.load(str(tiny_folder))
    scores = repsim.evaluate(model, tasks="grammar", limit=4, out=tmp_path / "scores.zarr")
    assert "logits" in scores.info["replay"]
    plant(model, 1, 0.1)
    with pytest.raises(RepsimError, match="at layer 1"):
        repsim.evaluate(model, tasks="grammar", limit=4, out=tmp_path / "other.zarr")


def test_the_probe_fits_small_vocabularies() -> None:
    batch = probe_batch(make("llama"), 0)
    assert isinstance(batch, Batch)
    assert np.issubdtype(batch.token_ids.dtype, np.integer)
    assert batch.token_ids.max() < VOCABULARY


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_every_architecture_is_proven(name: str, batch: Batch) -> None:
    """States, and logits if there are any, within the same bounds that refuse a planted fault."""
    model = cached_model(name)
    tracer, logits = Tracer(model), model.predicts_next_token
    tracer.run(BASELINE, [batch], lambda _: None, logprobs=logits)
    assert tracer.proof.verdict.kinds == ("padded", *(["logits"] if logits else []))
