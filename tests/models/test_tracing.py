import gc

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from repsim.data.batching import Batch
from repsim.data.packing import Packed, Window, pack_prefix_trees, pack_rows
from repsim.models import Model, tracing
from repsim.models.layer_call import state_of
from repsim.models.stack import find_stack
from repsim.models.tracing import NodeState, Tracer
from repsim.plans import Plan, PlanTrie, resolve
from support.models import DECODER, DECODERS, VOCABULARY, T, batch_of, make
from support.oracles import (
    assert_equal_but_for_rounding,
    naive,
    traced,
    windows_that_share,
    without_cache,
)
from support.plans import EXAMPLES


@pytest.mark.parametrize("cached", [False, True])
def test_baseline_is_the_models_own_hidden_states(model: Model, batch: Batch, cached: bool) -> None:
    """Bit for bit where the model's own forward runs without a cache, as the trace does; else but
    for rounding.
    """
    calls = []
    hook = model.stack.layers[-1].register_forward_hook(
        lambda _m, _a, output: calls.append(state_of(output))
    )
    mask = torch.from_numpy(batch.mask)
    with torch.inference_mode():
        output = model.module(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=mask.long(),
            output_hidden_states=True,
            **{} if cached else without_cache(model),
        )
    hook.remove()
    own = [*output.hidden_states[:T], calls[0]]  # the last one before the final norm
    (states,) = traced(model, [Plan.from_steps(range(T))], batch)
    assert len(states) == T + 1
    for layers, (ours, theirs) in enumerate(zip(states, own, strict=True)):
        if cached:
            assert_equal_but_for_rounding(ours, theirs[mask], layers)
        else:
            assert torch.equal(ours, theirs[mask])


def test_every_family_equals_a_naive_loop(model: Model, batch: Batch) -> None:
    plans = [resolve(text, T)[0].plan for text in EXAMPLES]
    for plan, states in zip(plans, traced(model, plans, batch), strict=True):
        for ours, theirs in zip(states, naive(model, plan, batch), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("text", "kept"), [("drop:layer=2", [0, 1, 3, 4, 5]), ("skip:start=1", [0, 1, 5])]
)
def test_removed_layers(model: Model, batch: Batch, text: str, kept: list[int]) -> None:
    """`drop` and `skip` equal a model from which the layers were physically taken."""
    (states,) = traced(model, [resolve(text, T)[0].plan], batch)
    smaller = make(model.name)
    for layer in sorted(set(range(T)) - set(kept), reverse=True):
        del smaller.stack.layers[layer]
        if getattr(smaller.module.config, "layer_types", None):
            del smaller.module.config.layer_types[layer]
    smaller.module.config.num_hidden_layers = len(kept)
    ends = []
    smaller.stack.layers[-1].register_forward_hook(
        lambda _m, _a, output: ends.append(state_of(output))
    )
    mask = torch.from_numpy(batch.mask)
    with torch.inference_mode():
        smaller.module(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=mask.long(),
            **without_cache(model),
        )
    assert torch.equal(states[-1], ends[0][mask])


def test_one_layer_middle_reversed_is_the_baseline() -> None:
    five = resolve(["reverse:start=2", "baseline"], 5)
    assert len(five) == 1


def test_a_sample_does_not_depend_on_its_batch(model: Model) -> None:
    lengths = (9, 7, 4, 1)
    whole = batch_of(lengths)
    plan = resolve("looped_parallel:start=1,loops=2", T)[0].plan
    (together,) = traced(model, [plan], whole)
    ends = np.cumsum((0, *lengths))
    for row, length in enumerate(lengths):
        alone = Batch(whole.token_ids[row : row + 1, :length], whole.mask[row : row + 1, :length])
        (single,) = traced(model, [plan], alone)
        for ours, theirs in zip(together, single, strict=True):
            piece = ours[ends[row] : ends[row + 1]]
            assert (piece - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("architecture", DECODERS)
def test_logprobs_are_those_of_the_models_own_logits(architecture: str, batch: Batch) -> None:
    model = make(architecture)
    trie = PlanTrie.build([Plan.from_steps(range(T)), resolve("skip:start=1", T)[0].plan])
    found: dict[int, Tensor] = {}

    def consume(state: NodeState) -> None:
        if state.logprob is not None:
            found[state.node] = state.logprob

    Tracer(model).run(trie, [batch], consume, logprobs=True)
    assert set(found) == set(trie.ends)
    ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.mask)
    with torch.inference_mode():
        logprobs = model.module(input_ids=ids, attention_mask=mask.long()).logits.log_softmax(-1)
    expected = torch.full(mask.shape, torch.nan)
    expected[:, :-1] = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    for row, length in enumerate(mask.sum(1)):
        expected[row, length - 1] = torch.nan
    torch.testing.assert_close(
        found[trie.ends[0]], expected[mask], equal_nan=True, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(found[trie.ends[1]], expected[mask], equal_nan=True)


def test_states_alive_grow_with_depth_not_with_nodes(llama: Model, batch: Batch) -> None:
    """A wide trie of many plans keeps no more states alive than its branching points on one path."""
    plans = [named.plan for named in resolve("painters", T)][::2]
    trie = PlanTrie.build(plans)
    assert len(trie) > 7 * trie.depth
    shape = (*batch.mask.shape, llama.units)

    def states() -> list[Tensor]:
        return [t for t in gc.get_objects() if type(t) is Tensor and t.shape == shape]

    def alive(trie: PlanTrie) -> int:
        gc.collect()
        earlier, most = states(), 0  # what other tests left behind stays and is not counted
        others = {t.data_ptr() for t in earlier}

        def consume(_state: NodeState) -> None:
            nonlocal most
            most = max(most, len({t.data_ptr() for t in states()} - others))

        Tracer(llama).run(trie, [batch], consume)
        return most

    assert alive(trie) <= trie.depth + 4
    assert alive(PlanTrie.build(plans[:1])) <= 4


def test_an_error_in_the_consumer_reaches_the_caller_and_leaves_the_model_usable(
    llama: Model, batch: Batch
) -> None:
    class Refused(Exception):
        pass

    tracer = Tracer(llama)
    trie = PlanTrie.build([Plan.from_steps(range(T))])

    def refuse(state: NodeState) -> None:
        if state.node == 2:
            raise Refused("node 2")

    with pytest.raises(Refused, match="node 2"):
        tracer.run(trie, [batch], refuse)
    nodes: list[int] = []
    tracer.run(trie, [batch], lambda state: nodes.append(state.node))
    assert nodes == list(range(T + 1))


def test_several_batches_of_a_block_equal_one(model: Model) -> None:
    """A block in two batches without padding gives the states of one padded batch, in the same
    order.
    """
    lengths = (9, 9, 4, 4)
    whole = batch_of(lengths)
    pieces = [
        Batch(whole.token_ids[:2], whole.mask[:2]),
        Batch(whole.token_ids[2:, :4], whole.mask[2:, :4]),
    ]
    trie = PlanTrie.build(
        [
            resolve(text, T)[0].plan
            for text in ("baseline", "parallel:start=1", "drop:layer=2,part=attn")
        ]
    )
    together: dict[int, Tensor] = {}
    apart: dict[int, Tensor] = {}
    Tracer(model).run(
        trie, [whole], lambda state: together.update({state.node: state.hidden.clone()})
    )
    Tracer(model).run(trie, pieces, lambda state: apart.update({state.node: state.hidden.clone()}))
    assert list(apart) == list(together)
    for ours, theirs in zip(apart.values(), together.values(), strict=True):
        assert ((ours - theirs).norm(dim=-1) <= 1e-5 * theirs.norm(dim=-1)).all()


def test_wanted_nodes_alone_are_handed_out_and_no_others_are_computed_but_their_ancestors(
    llama: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [resolve(text, T)[0].plan for text in ("baseline", "skip:start=1", "drop:layer=4")]
    trie = PlanTrie.build(plans)
    every: dict[int, Tensor] = {}
    tracer = Tracer(llama)
    tracer.run(trie, [batch], lambda state: every.update({state.node: state.hidden.clone()}))
    wanted = frozenset({3, trie.ends[1]})
    ran: list[int] = []
    apply_layer = tracing.apply_layer
    monkeypatch.setattr(
        tracing,
        "apply_layer",
        lambda stack, what, call: (ran.append(what.layer), apply_layer(stack, what, call))[1],
    )
    found: dict[int, Tensor] = {}
    tracer.run(
        trie, [batch], lambda state: found.update({state.node: state.hidden.clone()}), nodes=wanted
    )
    assert set(found) == wanted
    assert all(torch.equal(found[node], every[node]) for node in wanted)
    assert sorted(ran) == [0, 1, 2, 5]  # 0-2 lead to node 3; 0, 1, 5 is skip:start=1


# Trees of texts

TAKES_TREES = {
    "llama": True,
    "mistral": False,  # its window of four tokens cannot be told of trees
    "qwen3": True,
    "gemma3_text": False,  # likewise in two of three layers
    "gpt2": True,
    "gpt_neox": True,
    "opt": True,
    "falcon": True,
    "bert": False,
    "roberta": False,
    "distilbert": False,
    "modernbert": False,
    "mixtral": True,
}
TREE_PLANS = ("baseline", "0, (1|2|3), 4*3, 5", "drop:layer=2,part=attn")


def packed_scores(
    model: Model, packed: Packed, plans: tuple[str, ...]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each plan: the states that predict, `[target, unit]`, and what `predict` makes of them."""
    tracer, trie = Tracer(model), PlanTrie.build([resolve(text, T)[0].plan for text in plans])
    token, target = torch.from_numpy(packed.token), torch.from_numpy(packed.target)
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def consume(state: NodeState) -> None:
        found[state.node] = state.hidden[token], *tracer.predict(state.hidden, token, target)

    tracer.run(trie, packed.batches, consume, nodes=trie.ends)
    return [found[end] for end in trie.ends]


def literal(model: Model, windows: list[Window]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all targets and whether they are likeliest, one plain forward a text."""
    logprobs, likeliest = [], []
    for window in windows:
        with torch.inference_mode():
            logits = model.module(input_ids=torch.from_numpy(window.inputs[None]).long()).logits[0]
        rows = logits[len(window.inputs) - len(window.targets) :].log_softmax(-1)
        targets = torch.from_numpy(window.targets).long()
        logprobs.append(rows.gather(1, targets[:, None])[:, 0])
        likeliest.append(rows.argmax(-1) == targets)
    return torch.cat(logprobs), torch.cat(likeliest)


def test_which_models_take_trees(model: Model) -> None:
    assert Tracer(model).shares_contexts(30) is TAKES_TREES[model.name]


@pytest.mark.parametrize("row_tokens", [10, 256])
def test_states_and_scores_of_trees_are_those_of_the_texts_one_by_one(
    decoder: Model, row_tokens: int
) -> None:
    """Under every plan; where a model was found not to take trees, it refuses them or its numbers
    are others.
    """
    windows = windows_that_share()
    costs = {"overhead": 20, "waste": 0.5}
    rows = packed_scores(decoder, pack_rows(windows, 0, **costs), TREE_PLANS)
    packed = pack_prefix_trees(windows, 0, **costs, row_tokens=row_tokens)
    assert packed.tokens < sum(len(window.inputs) for window in windows)
    trees = packed_scores(decoder, packed, TREE_PLANS)
    for (state, logprob, likeliest), (wanted, expected, best) in zip(trees, rows, strict=True):
        if TAKES_TREES[decoder.name]:
            assert (state - wanted).norm() <= 1e-5 * wanted.norm()
            torch.testing.assert_close(logprob, expected, rtol=0, atol=1e-4)
            assert torch.equal(likeliest, best)
        else:
            assert (logprob - expected).abs().max() > 1e-2
    assert not torch.allclose(rows[0][1], rows[1][1], atol=1e-2)


def test_predictions_are_those_of_the_models_own_logits(decoder: Model) -> None:
    windows = windows_that_share()
    ((_, logprob, likeliest),) = packed_scores(
        decoder, pack_rows(windows, 0, overhead=20, waste=0.5), ("baseline",)
    )
    expected, best = literal(decoder, windows)
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
    monkeypatch.setattr(tracing, "LOGIT_TOKENS", 3)
    pieces = tracer.predict(hidden, tokens, targets)
    torch.testing.assert_close(pieces[0], whole[0], rtol=0, atol=1e-5)
    assert torch.equal(pieces[1], whole[1])
    nothing = torch.zeros(0, dtype=torch.long)
    assert [len(found) for found in tracer.predict(hidden, nothing, nothing)] == [0, 0]


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_texts_longer_than_a_window_of_attention_cannot_share(architecture: str) -> None:
    """A window of 40 tokens is no hindrance to texts of 40."""
    model = make(architecture)
    config = type(model.module.config)(**model.module.config.to_dict() | {"sliding_window": 40})
    wide = type(model.module)(config)
    wide.load_state_dict(model.module.state_dict())
    tracer = Tracer(
        Model(wide.eval().requires_grad_(False), None, architecture, None, find_stack(wide))
    )
    assert tracer.shares_contexts(40)
    assert not tracer.shares_contexts(41)


def small(class_name: str, **config: object) -> Model:
    """A random model of another architecture."""
    cls = getattr(transformers, class_name)
    torch.manual_seed(7)
    module = (
        cls(cls.config_class(**{"vocab_size": VOCABULARY, "pad_token_id": 0} | config))
        .eval()
        .requires_grad_(False)
    )
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return Model(module, None, class_name, None, find_stack(module))


def test_a_window_that_counts_places_in_the_row_cannot_share() -> None:
    """GPT-Neo's local attention is by place, whatever mask it is given; rows of trees are longer
    than its texts.
    """
    ids = {
        name: DECODER[name]
        for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    }
    kinds = {"attention_types": [[["global", "local"], T // 2]], "window_size": 50}
    model = small("GPTNeoForCausalLM", hidden_size=32, num_layers=T, num_heads=4, **kinds, **ids)
    generator = np.random.default_rng(3)
    texts = generator.integers(3, VOCABULARY, (12, 30)).astype(np.int32)
    texts[:, :12] = texts[0, :12]
    windows = [Window(row, row[-5:]) for row in texts]
    rows, trees = (
        packed_scores(model, pack(windows, 0, overhead=20, waste=0.5), ("baseline",))[0][1]
        for pack in (pack_rows, pack_prefix_trees)
    )
    assert not torch.allclose(trees, rows, atol=1e-2)
    assert not Tracer(model).shares_contexts(30)


def test_layers_that_mix_neighbours_cannot_share() -> None:
    """LFM2's convolutions take the tokens before in the row, of which some belong to other texts."""
    kinds = ["conv", "full_attention"] * (T // 2)
    model = small("Lfm2ForCausalLM", **{**DECODER, "layer_types": kinds})
    assert not Tracer(model).shares_contexts(30)


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_does_not_heed_what_it_is_told_is_found_out(ignored: str) -> None:
    model = make("llama")
    assert Tracer(model).shares_contexts(30)

    def forget(
        _module: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[object, object]:
        return args, {**kwargs, ignored: None}

    model.module.model.register_forward_pre_hook(forget, with_kwargs=True)
    assert not Tracer(model).shares_contexts(30)


def test_a_model_that_takes_no_positions_is_found_out() -> None:
    """What it raises is not the user's concern; it gets plain rows."""
    model = make("llama")

    def refuse(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if "position_ids" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    model.module.register_forward_pre_hook(refuse, with_kwargs=True)
    tracer = Tracer(model)
    assert not tracer.shares_contexts(30)
    states: list[Tensor] = []
    trie = PlanTrie.build([Plan.from_steps(range(T))])
    tracer.run(trie, [batch_of((5, 3))], lambda state: states.append(state.hidden), nodes=trie.ends)
    assert states[0].shape == (8, model.units)
