"""What repsim gives for one architecture, held against plain loops over the model's own layers.

Nothing that decides what is right comes from repsim: the layers' calls are seen by hooks in the
model's own forward, sublayers are layers in which the last weights of the other sublayer are zero,
and logits come from the model's own code.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache

import repsim
from repsim.data.batching import Batch
from repsim.errors import RepsimError
from repsim.models import Model
from repsim.models.forward import check_stack
from repsim.models.stack import find_stack
from repsim.models.tracing import Tracer
from repsim.plans import Plan, PlanTrie, resolve
from support.architectures import TOKENS, Subject, T
from support.plans import EXAMPLES

# Sublayers have a check of their own.
WHOLE = tuple(text for text in EXAMPLES if "part" not in text)
GENERATED = (
    "baseline",
    "skip:start=1",
    "reverse:start=1",
    "repeat:layer=0,times=2",
    "middle_repeat:start=0",
    "repeat:layer=4,times=2",
    "looped_parallel:start=1,loops=2",
)
SCORED = ("baseline", "skip:start=1", "reverse:start=1", "parallel:start=0", "drop:layer=5")
ROUNDING = 2e-5  # relative; of a token's state or logits, float32
CACHED = 1e-3  # with a cache other kernels run
NEW_TOKENS = 3

# Parameters of a layer by the sublayer that they belong to, and the last ones of each.
NORMS = re.compile(r"(^|[._])(ln|norm|layernorm)|norm", re.I)
MIXERS = re.compile(
    r"attn|attention|mamba|mixer|conv|temporal|linear_attn|ssm|short_conv|time_mix|rel_attn|fourier",
    re.I,
)
MLPS = re.compile(
    r"mlp|ffn|feed_?forward|moe|expert|(^|\.)fc_?\d|(^|\.)ff(\.|$)|intermediate|output|dense|router|DenseRelu",
    re.I,
)
MIXER_ENDS = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|dense|o|wo|out_lin|out|proj|out_layer|output_linear|linear_out|o_b_proj|attn_out|final_linear)$",
    re.I,
)
MLP_ENDS = re.compile(
    r"(^|\.)(down_proj|fc2|fc_2|c_proj|wo|w2|dense_4h_to_h|output\.dense|fc_out|proj|lin2|output_linear|linear2|fc_down|w_down|w_out|output_projection)$",
    re.I,
)


class Unknown(Exception):
    """There is no right value: the model's own layers cannot run as the plan says."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case of one check.

    kind: `equal`, `wrong`, `refused` (one line), `crash` (anything else), or `none` (no oracle; the
    text says why).
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


class Witness:
    """A model that repsim never touches, and what its own forward gave its layers on one batch.

    calls: `[layer]`, positional and named arguments.
    outputs: `[layer]`, as returned.
    """

    def __init__(self, subject: Subject, path: str, batch: Batch, generating: bool = False) -> None:
        self.module: Any = subject.build()
        self.layers = list(self.module.get_submodule(path))
        self.batch = batch
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.outputs: list[Any] = []
        self._loops: dict[Plan, list[Tensor]] = {}
        self.watch(generating)

    def watch(self, generating: bool = False) -> None:
        """Runs the model's own forward and keeps what its layers saw.

        With `generating`, the forward that begins its own generation.
        """
        self.calls.clear()
        self.outputs.clear()
        hooks = []
        for layer in self.layers:
            hooks.append(
                layer.register_forward_pre_hook(
                    lambda _m, a, k: self.calls.append((a, k)), with_kwargs=True
                )
            )
            hooks.append(layer.register_forward_hook(lambda _m, _a, out: self.outputs.append(out)))
        if generating:
            generated(self.module, self.batch, 1, use_cache=False)
        else:
            self.module(**inputs_of(self.module, self.batch))
        for hook in hooks:
            hook.remove()

    def own(self) -> list[Tensor]:
        """The states that the model's own forward went through, `[token, unit]`."""
        return self._tokens([state_in(self.calls[0]), *map(state_of, self.outputs)])

    def states(self, plan: Plan, layers: list[nn.Module] | None = None) -> list[Tensor]:
        """The plan's states by a plain loop over the model's or other layers, `[token, unit]`."""
        return self._tokens(self._remembered(plan) if layers is None else self.loop(plan, layers))

    def logprobs(self, plan: Plan) -> Tensor:
        """Log-probability of each token's successor.

        By the model's own forward, whose last layer returns the loop's last state.
        """
        with self._ending_in(self._remembered(plan)[-1]):
            logits = self.module(**inputs_of(self.module, self.batch)).logits
        ids, mask = torch.from_numpy(self.batch.token_ids), torch.from_numpy(self.batch.mask)
        right = torch.full(ids.shape, torch.nan)
        right[:, :-1] = logits.log_softmax(-1, dtype=torch.float32)[:, :-1].gather(
            -1, ids[:, 1:, None]
        )[..., 0]
        right[:, :-1].masked_fill_(~mask[:, 1:], torch.nan)
        return right[mask]

    def first_logits(self, plan: Plan) -> Tensor:
        """Logits of the first generated token, `[sample, vocabulary]`, likewise."""
        with self._ending_in(self._remembered(plan)[-1]):
            return generated(self.module, self.batch, 1, use_cache=False)[0][0]

    def _remembered(self, plan: Plan) -> list[Tensor]:
        if plan not in self._loops:
            self._loops[plan] = self.loop(plan, self.layers)
        return self._loops[plan]

    def _tokens(self, states: list[Tensor]) -> list[Tensor]:
        return [state[torch.from_numpy(self.batch.mask)] for state in states]

    def loop(self, plan: Plan, layers: list[nn.Module]) -> list[Tensor]:
        """The plan's states, padding included, by layers called as in the model's own forward.

        What layers hand on besides the state goes along the plan's path; a step's members get the
        same, and what its last member returns is handed on.
        """
        places = self._handed_on()
        args, kwargs = self.calls[0]
        carried = {key: args[key] if isinstance(key, int) else kwargs.get(key) for key in places}
        states = [state_in(self.calls[0])]
        for step in json.loads(plan.to_json()):
            outputs = [self._apply(layers[index], index, states[-1], carried) for index in step]
            states.append(torch.stack([state_of(output) for output in outputs]).mean(0))
            carried = {key: outputs[-1][place] for key, place in places.items()}
        return states

    def _apply(self, layer: nn.Module, index: int, state: Tensor, carried: dict[Any, Any]) -> Any:
        args, kwargs = self.calls[index]
        args = tuple(None if isinstance(value, Cache) else value for value in args)
        kwargs = {
            name: carried.get(name, value)
            for name, value in kwargs.items()
            if not isinstance(value, Cache)
        }
        if args:
            args = (state, *(carried.get(at, value) for at, value in enumerate(args[1:], 1)))
        else:
            kwargs["hidden_states"] = state
        try:
            return layer(*args, **kwargs)
        except Exception as problem:
            raise Unknown(
                f"the model's own layer {index} cannot run here: {told(problem)}"
            ) from problem

    def _handed_on(self) -> dict[Any, int]:
        """Arguments that the layer before returned besides the state: their place in its output.

        What one layer makes for all of them (T5's position biases) stays with each layer's own
        call.
        """
        places: dict[Any, int] = {}
        for output, (args, kwargs) in zip(self.outputs, self.calls[1:], strict=False):
            for place, value in (
                enumerate(output[1:], 1) if isinstance(output, (tuple, list)) else ()
            ):
                for key, argument in (*enumerate(args[1:], 1), *kwargs.items()):
                    if value is not None and argument is value:
                        places[key] = place
        makers = {
            key: {id(output[place]) for output in self.outputs[:-1]}
            for key, place in places.items()
        }
        return {key: place for key, place in places.items() if len(makers[key]) > 1}

    @contextmanager
    def _ending_in(self, state: Tensor) -> Iterator[None]:
        def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
            return (
                type(output)([state, *output[1:]]) if isinstance(output, (tuple, list)) else state
            )

        hook = self.layers[-1].register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()


class Run:
    """Batches that run together in one trace of plans, and the witness of each."""

    def __init__(self, model: Model, witnesses: list[Witness]) -> None:
        self.model, self.witnesses = model, witnesses
        self._traced: dict[Plan, tuple[list[Tensor], Tensor | None]] = {}

    def trace(self, plans: list[Plan]) -> None:
        """All plans in one trie; where that fails, each is traced by itself and tells of it."""
        with suppress(Exception):
            self._traced = self._run(plans)

    def _run(self, plans: list[Plan]) -> dict[Plan, tuple[list[Tensor], Tensor | None]]:
        trie = PlanTrie.build(plans)
        states: dict[int, Tensor] = {}
        scores: dict[int, Tensor] = {}

        def consume(state: Any) -> None:
            states[state.node] = state.hidden.clone()
            if state.logprob is not None:
                scores[state.node] = state.logprob.clone()

        batches = [witness.batch for witness in self.witnesses]
        Tracer(self.model).run(trie, batches, consume, logprobs=self.model.predicts_next_token)
        return {
            plan: ([states[node] for node in path], scores.get(path[-1]))
            for plan, path in zip(plans, trie.paths, strict=True)
        }

    def traced(self, plan: Plan) -> tuple[list[Tensor], Tensor | None]:
        return self._traced[plan] if plan in self._traced else self._run([plan])[plan]

    def baseline(self) -> float:
        """The traced baseline against what the model's own layers returned in its own forward."""
        found, _ = self.traced(Plan.from_steps(range(self.model.layers)))
        return _worst(found, _joined([witness.own() for witness in self.witnesses]))

    def family(self, plan: Plan) -> float:
        found, _ = self.traced(plan)
        return _worst(found, _joined([witness.states(plan) for witness in self.witnesses]))

    def logprobs(self, plan: Plan) -> float:
        _, found = self.traced(plan)
        right = torch.cat([witness.logprobs(plan) for witness in self.witnesses])
        assert found is not None, "the plan's last node has log-probabilities"
        if not torch.equal(found.isnan(), right.isnan()):
            raise AssertionError(
                "NaN where the model has a log-probability, or the other way round"
            )
        return ((found - right).abs() / right.abs()).nan_to_num(0).max().item()

    def sublayer(self, index: int, part: str) -> float | str:
        """A layer without one sublayer, traced and planned.

        Against one in which the last weights of that sublayer are zero.
        """
        kept = "mlp" if part == "attn" else "attn"
        every = range(self.model.layers)
        plan = Plan.from_steps([*every[:index], f"{index}.{kept}", *every[index + 1 :]])
        found, _ = self.traced(plan)
        layers = self.witnesses[0].layers
        layer = copy.deepcopy(layers[index])
        if not zero_sublayer(layer, part):
            children = ", ".join(name for name, _ in layer.named_children())
            return f"no last weights of {part} known among {children}"
        layers = [*layers[:index], layer, *layers[index + 1 :]]
        right = [witness.states(Plan.from_steps(every), layers) for witness in self.witnesses]
        at_end = planned_end(self.model, plan, self.witnesses[0].batch)
        return max(_worst(found, _joined(right)), difference(at_end, right[0][-1]))

    def planned(self, plan: Plan) -> float:
        """The last state of a planned model's own forward."""
        found = planned_end(self.model, plan, self.witnesses[0].batch)
        return difference(found, self.witnesses[0].states(plan)[-1])


def _joined(every: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(states) for states in zip(*every, strict=True)]


def _worst(found: list[Tensor], right: list[Tensor]) -> float:
    if len(found) != len(right):
        raise AssertionError(f"{len(found)} states, the loop has {len(right)}")
    return max(difference(mine, state) for mine, state in zip(found, right, strict=True))


def difference(found: Tensor, right: Tensor) -> float:
    """The largest relative difference of any token."""
    if found.shape != right.shape:
        raise AssertionError(f"shapes {tuple(found.shape)} and {tuple(right.shape)}")
    found, right = found.double(), right.double()
    if not torch.isfinite(right).all():
        raise Unknown("the loop's own states are not finite")
    return ((found - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-9)).max().item()


def state_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def state_in(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    args, kwargs = call
    return args[0] if args else kwargs["hidden_states"]


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    """Random token ids of these lengths, padded on the right."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(TOKENS.start, TOKENS.stop, mask.shape)
    return Batch(np.where(mask, ids, 0), mask)


def inputs_of(module: Any, batch: Batch) -> dict[str, Any]:
    """What a forward is given; a decoder behind an encoder reads the same tokens."""
    ids, mask = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.mask).long()
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if module.config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    if module.can_generate() or module.config.is_encoder_decoder:
        inputs["use_cache"] = False
    return inputs


def planned_end(model: Model, plan: Plan, batch: Batch) -> Tensor:
    """What leaves the stack of a planned model in its own forward, `[token, unit]`."""
    ends: list[Tensor] = []
    with repsim.planned(model, plan) as module:
        last = module.get_submodule(model.stack.path)[-1]
        hook = last.register_forward_hook(lambda _m, _a, output: ends.append(state_of(output)))
        module(**inputs_of(module, batch))
        hook.remove()
    return ends[-1][torch.from_numpy(batch.mask)]


def kinds_of(layers: Any) -> list[int]:
    """The first layer of every kind: by the classes inside it."""
    first: dict[str, int] = {}
    for index, layer in enumerate(layers):
        first.setdefault(
            str([(name, type(child).__name__) for name, child in layer.named_modules()]), index
        )
    return list(first.values())


def zero_sublayer(layer: nn.Module, part: str) -> list[str]:
    """Sets the last weights of a sublayer to zero; their names."""
    ends = MIXER_ENDS if part == "attn" else MLP_ENDS
    zeroed = []
    for path, parameter in layer.named_parameters():
        last = ends.search(re.sub(r"[._](weight|bias)$", "", path)) or re.search(
            r"(mlp|experts)\.bias$", path
        )
        if sublayer_of(path) == part and last:  # JetMoe adds its biases by itself
            parameter.data.zero_()
            zeroed.append(path)
    return zeroed


def sublayer_of(path: str) -> str:
    """Which sublayer of a layer a parameter belongs to; "" for norms and what is not known."""
    owner = path.rpartition(".")[0]
    if NORMS.search(owner):
        return ""
    if MIXERS.search(path):  # what reads an encoder included
        return "attn"
    return "mlp" if MLPS.search(path) else ""


def cache_difference(
    module: Any, batch: Batch, plain: tuple[Tensor, ...], sequence: Tensor
) -> float:
    """Greedy generation with the cache against logits and tokens without it."""
    cached, other = generated(module, batch, NEW_TOKENS, use_cache=True)
    worst, length = 0.0, batch.mask.shape[1]
    for step, pair in enumerate(zip(cached, plain, strict=True)):
        if torch.equal(sequence[:, : length + step], other[:, : length + step]):
            worst = max(worst, difference(*pair))
    return worst


def generated(
    module: Any, batch: Batch, tokens: int, use_cache: bool
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Logits of each greedy step, and all token ids."""
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
        suppress_tokens=[
            *range(TOKENS.start),
            *range(TOKENS.stop, module.config.get_text_config().vocab_size),
        ],
    )
    return output.logits, output.sequences


# The checks


@torch.no_grad()
def examine(subject: Subject) -> list[Outcome]:
    """Every check of one architecture."""
    found: list[Outcome] = []
    module = subject.build()
    try:
        stack = find_stack(module, subject.stack(module))
        check_stack(module, stack)
    except RepsimError as problem:
        return [Outcome("baseline", "", "refused", str(problem))]
    model = Model(module, None, subject.name, None, stack)
    if model.layers != T:
        return [Outcome("baseline", "", "none", f"{model.layers} layers, not {T}")]
    plans = {text: resolve(text, model.layers)[0].plan for text in WHOLE}
    batches = {"alone": batch_of((40,), seed=1), "padded": batch_of((9, 6, 4))}
    witnesses = {
        layout: Witness(subject, model.stack.path, batch) for layout, batch in batches.items()
    }
    runs = {layout: Run(model, [witness]) for layout, witness in witnesses.items()}
    for layout, run in runs.items():
        judge(found, "baseline", layout, ROUNDING, run.baseline)
    right = {outcome.case for outcome in found if outcome.kind == "equal"}
    runs = {layout: run for layout, run in runs.items() if layout in right}
    if len(runs) == 2:
        runs = {"both": Run(model, list(witnesses.values()))}  # as a block's batches run
        judge(found, "baseline", "both", ROUNDING, runs["both"].baseline)
    for layout, run in runs.items():
        run.trace(list(plans.values()))
        for text, plan in plans.items():
            judge(found, "families", f"{text}, {layout}", ROUNDING, partial(run.family, plan))
            if model.predicts_next_token and text in SCORED:
                judge(
                    found,
                    "log-probabilities",
                    f"{text}, {layout}",
                    ROUNDING,
                    partial(run.logprobs, plan),
                )
    for text, plan in plans.items():
        judge(
            found,
            "families",
            f"{text}, planned",
            ROUNDING,
            partial(Run(model, [witnesses["padded"]]).planned, plan),
        )
    for run in list(runs.values())[:1]:
        for index in kinds_of(model.stack.layers):
            for part in ("attn", "mlp"):
                judge(
                    found,
                    "sublayers",
                    f"{index} without {part}",
                    ROUNDING,
                    partial(run.sublayer, index, part),
                )
    if model.predicts_next_token:
        _generations(found, subject, model, left=True, texts=GENERATED)
        _generations(found, subject, model, left=False, texts=GENERATED[-2:])
    return found


def _generations(
    found: list[Outcome], subject: Subject, model: Model, left: bool, texts: tuple[str, ...]
) -> None:
    """Greedy generation of planned models: without a cache against the loop and against a cache."""
    mask = np.arange(7)[None] >= np.array([[0], [3 if left else 0]])
    ids = np.where(
        mask, np.random.default_rng(2).integers(TOKENS.start, TOKENS.stop, mask.shape), 0
    )
    batch = Batch(ids, mask)
    layout = "left padding" if left else "no padding"
    try:
        witness = Witness(subject, model.stack.path, batch, generating=True)
        for use_cache in (False, True):
            generated(witness.module, batch, NEW_TOKENS, use_cache)
    except Exception as problem:
        found.append(
            Outcome(
                "generation", layout, "none", f"the model itself does not generate: {told(problem)}"
            )
        )
        return

    def compare(plan: Plan) -> float | str:
        with repsim.planned(model, plan) as module:
            plain = generated(module, batch, NEW_TOKENS, use_cache=False)
            cached = cache_difference(module, batch, *plain)
        first = difference(plain[0][0], witness.first_logits(plan))
        if (
            first <= CACHED < cached
            and (itself := _own_cache_error(witness.module, batch)) > CACHED
        ):
            return (
                f"with its cache the model itself differs by {itself:.0e}, the planned one by "
                f"{cached:.0e}"
            )
        return max(first, cached)

    for text in texts:
        plan = resolve(text, model.layers)[0].plan
        judge(found, "generation", f"{text}, {layout}", CACHED, partial(compare, plan))


def _own_cache_error(module: Any, batch: Batch) -> float:
    """How far a model's own cache is off, at most, for this batch and eight others.

    Some models choose experts by what is rounding, so that one batch shows too little.
    """
    largest = 0.0
    for seed in range(9):
        others = np.random.default_rng(seed).integers(TOKENS.start, TOKENS.stop, batch.mask.shape)
        ids = batch.token_ids if not seed else np.where(batch.mask, others, 0)
        one = Batch(ids, batch.mask)
        largest = max(
            largest,
            cache_difference(module, one, *generated(module, one, NEW_TOKENS, use_cache=False)),
        )
    return largest


def judge(
    found: list[Outcome], check: str, case: str, bound: float, compare: Callable[[], float | str]
) -> None:
    try:
        value = compare()
    except Unknown as problem:
        found.append(Outcome(check, case, "none", str(problem)))
    except RepsimError as problem:
        found.append(
            Outcome(check, case, "crash" if "\n" in str(problem) else "refused", str(problem))
        )
    except Exception as problem:
        found.append(Outcome(check, case, "crash", told(problem)))
    else:
        if isinstance(value, str):
            found.append(Outcome(check, case, "none", value))
        else:
            found.append(
                Outcome(check, case, "equal" if value <= bound else "wrong", f"{value:.1e}", value)
            )


def told(problem: Exception) -> str:
    """An exception in one line, with the place that raised it."""
    frame = problem.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = (
        f"{frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}" if frame else ""
    )
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]} ({where})"
