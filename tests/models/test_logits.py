"""Scores made of states that leave the stack, against the model's own logits."""

import pytest
import torch
from torch import Tensor

from repsim.data.packing import Window, pack_rows
from repsim.models import Model, logits
from repsim.models.tracing import Tracer
from support.counting import CountingMode
from support.models import VOCABULARY, make
from support.oracles import score_packed, windows_that_share


def score_one_by_one(model: Model, windows: list[Window]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all targets and whether they are likeliest, one forward per text."""
    logprobs, likeliest = [], []
    for window in windows:
        with torch.inference_mode():
            output = model.module(input_ids=torch.from_numpy(window.inputs[None]).long())
        rows = output.logits[0, len(window.inputs) - len(window.targets) :].log_softmax(-1)
        targets = torch.from_numpy(window.targets).long()
        logprobs.append(rows.gather(1, targets[:, None])[:, 0])
        likeliest.append(rows.argmax(-1) == targets)
    return torch.cat(logprobs), torch.cat(likeliest)


def test_predictions_are_those_of_the_models_own_logits(decoder: Model) -> None:
    windows = windows_that_share()
    ((_, logprob, likeliest),) = score_packed(
        decoder, pack_rows(windows, 0, overhead=20, waste=0.5), ("baseline",)
    )
    expected, best = score_one_by_one(decoder, windows)
    torch.testing.assert_close(logprob, expected, rtol=0, atol=1e-4)
    assert torch.equal(likeliest, best)


def test_one_token_predicts_several_targets(llama: Model) -> None:
    """All ids of the vocabulary at one token: probabilities that sum to one, of which one is the
    likeliest.
    """
    tracer, hidden = (
        Tracer(llama),
        torch.randn(3, llama.units, generator=torch.Generator().manual_seed(0)),
    )
    tokens, targets = torch.full((VOCABULARY,), 1), torch.arange(VOCABULARY)
    logprob, likeliest = tracer.predict(hidden, tokens, targets)
    assert logprob.dtype == torch.float32
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert likeliest.nonzero().tolist() == [[int(logprob.argmax())]]
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))
    again = tracer.predict(hidden, torch.cat([tokens, tokens - 1]), torch.cat([order, order]))[0]
    torch.testing.assert_close(again[:VOCABULARY], logprob[order], rtol=0, atol=1e-5)
    assert not torch.allclose(again[VOCABULARY:], logprob[order], atol=1e-2)


def test_predictions_do_not_depend_on_how_many_are_made_at_once(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer, generator = Tracer(llama), torch.Generator().manual_seed(0)
    hidden = torch.randn(20, llama.units, generator=generator)
    tokens = torch.randint(20, (50,), generator=generator)
    targets = torch.randint(VOCABULARY, (50,), generator=generator)
    whole = tracer.predict(hidden, tokens, targets)
    monkeypatch.setattr(logits, "LOGIT_TOKENS", 3)
    pieces = tracer.predict(hidden, tokens, targets)
    torch.testing.assert_close(pieces[0], whole[0], rtol=0, atol=1e-5)
    assert torch.equal(pieces[1], whole[1])
    nothing = torch.zeros(0, dtype=torch.long)
    assert [len(found) for found in tracer.predict(hidden, nothing, nothing)] == [0, 0]


def test_targets_are_cut_by_the_tokens_that_predict_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "LOGIT_TOKENS", 2)
    tokens, targets = torch.tensor([9, 4, 9, 6, 4, 7]), torch.tensor([10, 11, 12, 13, 14, 15])
    pieces = logits.cut_targets(tokens, targets, torch.device("cpu"))
    assert [piece.tokens.tolist() for piece in pieces] == [[4, 6], [7, 9]]
    for piece in pieces:
        assert torch.equal(piece.tokens[piece.rows], tokens[piece.places])
        assert torch.equal(piece.ids, targets[piece.places])
    assert sorted(torch.cat([piece.places for piece in pieces]).tolist()) == list(range(6))


def test_scoring_itself_waits_for_no_device(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the model's forward does: transformers asks once whether samples are packed in a row."""
    monkeypatch.setattr(logits, "LOGIT_TOKENS", 4)
    tracer, tokens = Tracer(llama), torch.arange(20)
    hidden = torch.randn(20, llama.units, generator=torch.Generator().manual_seed(0))
    pieces = logits.cut_targets(tokens, tokens, hidden.device)
    tracer.score(hidden, pieces)  # proves the logits once
    with CountingMode() as counts:
        tracer.score(hidden, pieces)
    assert counts.launches
    assert counts.synchronisations == {"aten._local_scalar_dense": len(pieces)}


def test_finishing_a_state_leaves_the_layers_in_their_place() -> None:
    model = make("llama")
    layers = model.module.model.layers
    with torch.inference_mode():
        logits.logits_of(model.module, model.stack, torch.ones(2, 32), form=torch.empty(0))
    assert model.module.model.layers is layers
