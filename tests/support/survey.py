"""What repsim gives for one architecture, held against plain loops over the model's own layers.

Nothing that decides what is right comes from repsim: the layers' calls are seen by hooks in the model's own forward,
half layers have the last weights of the other half set to zero, and logits come from the model's own code.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from support.architectures import TOKENS, Subject
from torch import Tensor, nn

import repsim
from repsim.corpus import Batch
from repsim.families import resolve
from repsim.models import Model
from repsim.models.stack import find_stack
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie
from repsim.schema import RepsimError

FAMILIES = (
    "baseline",
    "skip:start=1",
    "middle_repeat:start=0",
    "reverse:start=1",
    "random:start=0,seed=3",
    "parallel:start=0",
    "looped_parallel:start=1,loops=3",
    "drop:layer=0",
    "drop:layer=5",
    "switch:layer=2",
    "drop_block:first=1,last=3",
    "repeat:layer=4,times=3",
)
GENERATED = (
    "baseline",
    "skip:start=1",
    "reverse:start=1",
    "looped_parallel:start=1,loops=2",
    "repeat:layer=0,times=2",
    "repeat:layer=4,times=2",
)
ROUNDING = 2e-5  # relative; of a token's state or logits, float32
CACHED = 1e-3  # with a cache other kernels run
NEW_TOKENS = 4

# Parameters of a layer by the half that they belong to, and the last ones of each half.
NORMS = re.compile(r"(^|[._])(ln|norm|layernorm)|norm", re.I)
MIXERS = re.compile(r"attn|attention|mamba|mixer|conv|temporal|linear_attn|ssm|short_conv|time_mix|rel_attn|fourier", re.I)
MLPS = re.compile(r"mlp|ffn|feed_?forward|moe|expert|(^|\.)fc_?\d|(^|\.)ff(\.|$)|intermediate|output|dense|router|DenseRelu", re.I)
MIXER_ENDS = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|dense|o|wo|out_lin|out|proj|out_layer|output_linear|linear_out|o_b_proj|attn_out|final_linear)$",
    re.I,
)
MLP_ENDS = re.compile(
    r"(^|\.)(down_proj|fc2|fc_2|c_proj|wo|w2|dense_4h_to_h|output\.dense|fc_out|proj|lin2|output_linear|linear2|fc_down|w_down|w_out|output_projection)$",
    re.I,
)


@dataclass(frozen=True)
class Outcome:
    """What became of one case of one check.

    kind: `equal`, `wrong`, `refused` (one line), `crash` (anything else), or `none` (no oracle; the text says why).
    difference: the largest of any token, relative; NaN where nothing was compared.
    """

    check: str
    case: str
    kind: str
    text: str
    difference: float = float("nan")

    @property
    def is_fault(self) -> bool:
        return self.kind in ("wrong", "crash")


@dataclass(frozen=True)
class Seen:
    """What a model's own forward gave its layers, and what they gave back.

    calls: `[layer]`, positional and named arguments.
    outputs: `[layer]`, as returned.
    """

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    outputs: list[Any]
    logits: Tensor | None


def examine(subject: Subject) -> list[Outcome]:
    """Every check of one architecture."""
    found: list[Outcome] = []
    module = subject.build()
    try:
        model = Model(module, None, subject.name, None, find_stack(module, subject.stack))
    except RepsimError as problem:
        return [Outcome("baseline", "", "refused", str(problem))]
    layers = list(module.get_submodule(model.stack.path))
    plans = {text: resolve(text, len(layers))[0].plan for text in FAMILIES}
    for batch in (batch_of((9, 6, 4)), batch_of((12,), seed=1)):
        layout = "padded" if len(batch.mask) > 1 else "alone"
        with torch.no_grad():
            seen = own(model, layers, batch)
        _judge(found, "baseline", layout, ROUNDING, lambda b=batch, s=seen: baseline(model, s, b))
        if found[-1].kind != "equal":
            continue
        traces = Traces(model, list(plans.values()), batch)
        for text, plan in plans.items():
            right = loop(layers, seen, plan)
            case = f"{text}, {layout}"
            if text != "baseline":
                _judge(found, "families", f"{case}, traced", ROUNDING,
                       lambda t=traces, p=plan, r=right: _worst(t.states(p), r, t.batch))  # fmt: skip
            if layout == "padded":
                _judge(found, "families", f"{case}, planned", ROUNDING,
                       lambda b=batch, p=plan, r=right: planned_end(model, p, b, r[-1]))  # fmt: skip
            if model.predicts_next_token:
                _judge(found, "log-probabilities", case, ROUNDING,
                       lambda t=traces, p=plan, r=right: logprobs(model, layers, t, p, r[-1]))  # fmt: skip
        if layout == "padded":
            for index in kinds(layers):
                for part in ("attn", "mlp"):
                    _judge(found, "halves", f"{index} without {part}", ROUNDING,
                           lambda i=index, p=part, s=seen, b=batch: half(model, layers, i, p, s, b))  # fmt: skip
    if model.predicts_next_token:
        for left in (False, True):
            _generations(found, model, layers, left)
    return found


def _judge(found: list[Outcome], check: str, case: str, bound: float, compare: Callable[[], float | str]) -> None:
    try:
        with torch.no_grad():
            difference = compare()
    except RepsimError as problem:
        text = str(problem)
        found.append(Outcome(check, case, "refused" if "\n" not in text else "crash", text))
    except Exception as problem:
        found.append(Outcome(check, case, "crash", _told(problem)))
    else:
        if isinstance(difference, str):
            found.append(Outcome(check, case, "none", difference))
        else:
            kind = "equal" if difference <= bound else "wrong"
            found.append(Outcome(check, case, kind, f"{difference:.1e}", difference))


def _told(problem: Exception) -> str:
    frame = problem.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f"{frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}" if frame else ""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]} ({where})"


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    """Random token ids of these lengths, padded on the right."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(TOKENS.start, TOKENS.stop, mask.shape)
    return Batch(np.where(mask, ids, 0), mask)


# The oracles


@contextmanager
def watched(layers: list[nn.Module]) -> Iterator[Seen]:
    """Fills in what layers are called with and return while the model runs."""
    seen = Seen([], [], None)
    hooks = []
    for layer in layers:
        hooks.append(layer.register_forward_pre_hook(lambda _m, a, k: seen.calls.append((a, k)), with_kwargs=True))
        hooks.append(layer.register_forward_hook(lambda _m, _a, out: seen.outputs.append(out)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def inputs_of(module: Any, batch: Batch) -> dict[str, Any]:
    ids = torch.from_numpy(batch.token_ids)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.from_numpy(batch.mask).long()}
    if module.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if module.can_generate() or module.config.is_encoder_decoder:
        inputs["use_cache"] = False
    return inputs


def own(model: Model, layers: list[nn.Module], batch: Batch) -> Seen:
    """The model's own forward, watched."""
    with watched(layers) as seen:
        output = model.module(**inputs_of(model.module, batch))
    return Seen(seen.calls, seen.outputs, getattr(output, "logits", None))


def state_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def state_in(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    args, kwargs = call
    return args[0] if args else kwargs["hidden_states"]


def handed_on(seen: Seen) -> dict[Any, int]:
    """Arguments that are what the layer before returned beside the state: their place in its output."""
    places: dict[Any, int] = {}
    for output, (args, kwargs) in zip(seen.outputs, seen.calls[1:], strict=False):
        if not isinstance(output, (tuple, list)):
            continue
        for place, value in enumerate(output[1:], 1):
            for key, argument in (*enumerate(args[1:], 1), *kwargs.items()):
                if value is not None and argument is value:
                    places[key] = place
    return places


def loop(layers: list[nn.Module], seen: Seen, plan: Plan) -> list[Tensor]:
    """A plan's states by calling each layer with what the model's own forward called it with.

    What layers hand on beside the state goes along the plan's path; a step's members get the same, and the first one's
    is handed on.
    """
    places = handed_on(seen)
    state = state_in(seen.calls[0])
    first_args, first_kwargs = seen.calls[0]
    carried = {key: first_args[key] if isinstance(key, int) else first_kwargs.get(key) for key in places}
    states = [state]
    for members in _members(plan):
        outputs = []
        for index in members:
            args, kwargs = seen.calls[index]
            args = tuple(carried.get(at, value) for at, value in enumerate(args))
            kwargs = {name: carried.get(name, value) for name, value in kwargs.items()}
            if args:
                args = (state, *args[1:])
            else:
                kwargs["hidden_states"] = state
            outputs.append(layers[index](*args, **kwargs))
        states.append(torch.stack([state_of(output) for output in outputs]).mean(0))
        state = states[-1]
        carried = {key: outputs[0][place] for key, place in places.items()}
    return states


def _members(plan: Plan) -> list[list[int]]:
    return [[int(re.match("[0-9]+", part)[0]) for part in step] for step in _json_steps(plan)]


def _json_steps(plan: Plan) -> list[list[str]]:
    import json

    steps = json.loads(plan.to_json())
    return [[str(member) for member in (step if isinstance(step, list) else [step])] for step in steps]


def difference(found: Tensor, right: Tensor) -> float:
    """The largest relative difference of any token."""
    if found.shape != right.shape:
        raise AssertionError(f"shapes {tuple(found.shape)} and {tuple(right.shape)}")
    found, right = found.double(), right.double()
    if not torch.isfinite(right).all():
        raise AssertionError("the loop's own states are not finite")
    return ((found - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-9)).max().item()


def tokens_of(state: Tensor, batch: Batch) -> Tensor:
    return state[torch.from_numpy(batch.mask)]


def _worst(found: list[Tensor], right: list[Tensor], batch: Batch) -> float:
    if len(found) != len(right):
        raise AssertionError(f"{len(found)} states, the loop has {len(right)}")
    return max(difference(mine, tokens_of(state, batch)) for mine, state in zip(found, right, strict=True))


class Traces:
    """What one trace of all plans gives; where it is refused as a whole, each plan is traced by itself."""

    def __init__(self, model: Model, plans: list[Plan], batch: Batch) -> None:
        self.model, self.batch = model, batch
        self._paths: dict[Plan, tuple[list[Tensor], Tensor | None]] = {}
        try:
            self._paths = self._run(plans)
        except Exception:  # told plan by plan
            self._paths = {}

    def _run(self, plans: list[Plan]) -> dict[Plan, tuple[list[Tensor], Tensor | None]]:
        trie = PlanTrie.build(plans)
        states: dict[int, Tensor] = {}
        scores: dict[int, Tensor] = {}

        def consume(state: Any) -> None:
            states[state.node] = state.hidden.clone()
            if state.logprob is not None:
                scores[state.node] = state.logprob.clone()

        Tracer(self.model).run(trie, [self.batch], consume, logprobs=self.model.predicts_next_token)
        return {
            plan: ([states[node] for node in path], scores.get(path[-1]))
            for plan, path in zip(plans, trie.paths, strict=True)
        }

    def states(self, plan: Plan) -> list[Tensor]:
        return self._of(plan)[0]

    def logprobs(self, plan: Plan) -> Tensor | None:
        return self._of(plan)[1]

    def _of(self, plan: Plan) -> tuple[list[Tensor], Tensor | None]:
        return self._paths[plan] if plan in self._paths else self._run([plan])[plan]


# The checks


def baseline(model: Model, seen: Seen, batch: Batch) -> float:
    """The traced baseline against what the model's own layers returned in its own forward."""
    right = [state_in(seen.calls[0]), *(state_of(output) for output in seen.outputs)]
    plan = Plan.from_steps(range(model.layers))
    return _worst(Traces(model, [plan], batch).states(plan), right, batch)


def planned_end(model: Model, plan: Plan, batch: Batch, right: Tensor) -> float:
    """What leaves the stack of a planned model in its own forward, against the loop's last state."""
    ends: list[Tensor] = []
    with repsim.planned(model, plan) as module:
        last = module.get_submodule(model.stack.path)[-1]
        hook = last.register_forward_hook(lambda _m, _a, output: ends.append(state_of(output)))
        module(**inputs_of(module, batch))
        hook.remove()
    return difference(tokens_of(ends[-1], batch), tokens_of(right, batch))


def kinds(layers: list[nn.Module]) -> list[int]:
    """The first layer of every kind: by the classes inside it."""
    first: dict[str, int] = {}
    for index, layer in enumerate(layers):
        first.setdefault(str([(name, type(child).__name__) for name, child in layer.named_modules()]), index)
    return list(first.values())


def half_of(path: str) -> str:
    """Which half of a layer a parameter belongs to; "" for norms and what is not known."""
    owner = path.rpartition(".")[0]
    if re.search(r"cross|encoder_attn|EncDec", path):
        return ""
    if MIXERS.search(path.split(".output.")[0] if path.startswith("output") else path):
        return "" if NORMS.search(owner) else "attn"
    return "mlp" if MLPS.search(path) and not NORMS.search(owner) else ""


def half(model: Model, layers: list[nn.Module], index: int, part: str, seen: Seen, batch: Batch) -> float | str:
    """A layer without one half, traced and planned, against the layer whose last weights of that half are zero."""
    kept = "mlp" if part == "attn" else "attn"
    plan = Plan.from_steps([*range(index), f"{index}.{kept}", *range(index + 1, len(layers))])
    found = Traces(model, [plan], batch).states(plan)
    layer = copy.deepcopy(layers[index])
    ends = MIXER_ENDS if part == "attn" else MLP_ENDS
    zeroed = []
    for path, parameter in layer.named_parameters():
        name = re.sub(r"[._](weight|bias)$", "", path)
        if half_of(path) == part and ends.search(name):
            parameter.data.zero_()
            zeroed.append(path)
    if not zeroed:
        return f"no last weights of {part} known among {', '.join(name for name, _ in layer.named_children())}"
    right = loop([*layers[:index], layer, *layers[index + 1 :]], seen, Plan.from_steps(range(len(layers))))
    return max(_worst(found, right, batch), planned_end(model, plan, batch, right[-1]))


@contextmanager
def ending_in(layers: list[nn.Module], state: Tensor) -> Iterator[None]:
    """The model, its last layer returning a given state."""

    def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
        return type(output)([state, *output[1:]]) if isinstance(output, (tuple, list)) else state

    hook = layers[-1].register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def logprobs(model: Model, layers: list[nn.Module], traces: Traces, plan: Plan, end: Tensor) -> float:
    """Next-token log-probabilities, against those that the model's own forward gives to the loop's last state."""
    batch = traces.batch
    found = traces.logprobs(plan)
    with ending_in(layers, end):
        logits = model.module(**inputs_of(model.module, batch)).logits
    ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.mask)
    right = torch.full(ids.shape, torch.nan)
    right[:, :-1] = logits.log_softmax(-1, dtype=torch.float32)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    right[:, :-1].masked_fill_(~mask[:, 1:], torch.nan)
    if not torch.equal(found.isnan(), right[mask].isnan()):
        raise AssertionError("NaN where the model has a log-probability, or the other way round")
    return ((found - right[mask]).abs() / right[mask].abs()).nan_to_num(0).max().item()


def _generations(found: list[Outcome], model: Model, layers: list[nn.Module], left: bool) -> None:
    """Greedy generation of planned models: with the cache against without, and without against the loop."""
    mask = np.arange(7)[None] >= np.array([[0], [3 if left else 0]])
    ids = np.where(mask, np.random.default_rng(2).integers(TOKENS.start, TOKENS.stop, mask.shape), 0)
    batch = Batch(ids, mask)
    layout = "left padding" if left else "no padding"
    try:
        with torch.no_grad():
            itself = _cache_difference(model.module, batch)
            with watched(layers) as seen:
                _generated(model.module, batch, 1, use_cache=False)
    except Exception as problem:
        found.append(Outcome("generation", layout, "none", f"the model itself does not generate: {_told(problem)}"))
        return
    for text in GENERATED:
        plan = resolve(text, len(layers))[0].plan
        _judge(found, "generation", f"{text}, {layout}", CACHED,
               lambda p=plan: generation(model, layers, p, batch, seen, itself))  # fmt: skip


def generation(
    model: Model, layers: list[nn.Module], plan: Plan, batch: Batch, seen: Seen, itself: float
) -> float | str:
    with ending_in(layers, loop(layers, seen, plan)[-1]):
        right, _ = _generated(model.module, batch, 1, use_cache=False)
    with repsim.planned(model, plan) as module:
        found, _ = _generated(module, batch, 1, use_cache=False)
        first = difference(found[0], right[0])
        cached = _cache_difference(module, batch)
    if first <= CACHED < min(cached, itself):
        return f"with its cache the model itself differs by {itself:.0e}, the planned one by {cached:.0e}"
    return max(first, cached)


def _cache_difference(module: Any, batch: Batch) -> float:
    plain, sequence = _generated(module, batch, NEW_TOKENS, use_cache=False)
    cached, other = _generated(module, batch, NEW_TOKENS, use_cache=True)
    worst, length = 0.0, batch.mask.shape[1]
    for step, pair in enumerate(zip(cached, plain, strict=True)):
        if torch.equal(sequence[:, : length + step], other[:, : length + step]):
            worst = max(worst, difference(*pair))
    return worst


def _generated(module: Any, batch: Batch, tokens: int, use_cache: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    output = module.generate(
        torch.from_numpy(batch.token_ids),
        attention_mask=torch.from_numpy(batch.mask).long(),
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=[*range(TOKENS.start), *range(TOKENS.stop, module.config.get_text_config().vocab_size)],
    )
    return output.logits, output.sequences
