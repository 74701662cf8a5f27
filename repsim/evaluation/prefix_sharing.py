"""Log-likelihoods of texts under many plans, in one pass over what plans and texts share.

Plans that begin with the same steps share those (`PlanTrie`), and texts that begin with the same
tokens share these: they are packed into prefix trees, whose common tokens are computed once
(`repsim.data.packing`). Not every model takes such trees, so that is tried once per run; rows with
one text each give the same numbers on any model. Only the states that leave a plan are scored, at
the tokens that predict something.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from repsim.data.batching import BatchRule, costs_on
from repsim.data.packing import Packed, Window, pack_prefix_trees, pack_rows
from repsim.errors import ModelError
from repsim.evaluation.scoring import score_examples
from repsim.jobs.memory import explain_out_of_memory
from repsim.plans import PlanTrie
from repsim.schema import NOT_FINITE, ReplayVerdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from repsim.evaluation.questions import Example
    from repsim.evaluation.request import EvaluationRequest
    from repsim.models.tracing import NodeState
    from repsim.storage import score_store

log = logging.getLogger("repsim")


def windows_of(examples: Sequence[Example]) -> list[Window]:
    """The windows of all requests of these examples, in order; generated texts have none."""
    return [
        window
        for example in examples
        for question in example.requests
        for window in question.windows
    ]


def count_tokens(request: EvaluationRequest, examples: Sequence[Example]) -> int:
    """How many tokens the requests of these examples have, shared ones counted each time.

    Args:
        request: what is evaluated; its tokenizer counts prompts that are to be continued.
        examples: any examples.
    """
    prompts = [
        question.prompt
        for example in examples
        for question in example.requests
        if question.prompt is not None
    ]
    prompt_tokens = sum(len(request.model.tokenizer(prompt)["input_ids"]) for prompt in prompts)
    return prompt_tokens + sum(len(window.inputs) for window in windows_of(examples))


def plans_ahead(device: torch.device) -> int:
    """How many plans' answers may wait to become scores: a graphics card works on the next plan
    meanwhile, a CPU could not.
    """
    return 0 if device.type == "cpu" else 1


class _Scored:
    """What a plan's states predict, on its way to the host.

    Args:
        plan: index of the plan.
        logprob: `[target]`, float32.
        likeliest: `[target]`, bool.
    """

    def __init__(self, plan: int, logprob: Tensor, likeliest: Tensor) -> None:
        import torch

        self.plan = plan
        values = logprob, likeliest
        self._host = [value.to("cpu", non_blocking=True) for value in values]
        self._arrived = None
        if logprob.device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(logprob.device))

    def fetch(self) -> list[Tensor]:
        """Log-probabilities and whether each is the likeliest, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


class LikelihoodScorer:
    """Scores blocks of examples whose answer is a log-likelihood.

    Args:
        request: what is evaluated.
        layout: of the store; its plans are run.
        examples: all that are asked for, not only those yet to be scored: what a run does must not
            depend on what an earlier one has left of it.
        prefix_sharing: `on`, `off`, or `auto`: on where the model takes prefix trees.

    Raises:
        RepsimError: sharing is to be on and the model does not take prefix trees, or the model's
            tokens see those after them.
    """

    def __init__(
        self,
        request: EvaluationRequest,
        layout: score_store.Layout,
        examples: Sequence[Example],
        prefix_sharing: str,
    ) -> None:
        from repsim.models.batch_invariance import BatchTrials
        from repsim.models.prefix_trees import supports_prefix_trees
        from repsim.models.tracing import Tracer

        self._request, self._layout = request, layout
        self._trie = PlanTrie.build(named.plan for named in layout.plans)
        self._tracer = Tracer(request.model)

        # Which texts may run together without changing each other's states?
        texts = [window.inputs for window in windows_of(examples)]
        trials = BatchTrials(request.model, self._tracer, texts)
        with explain_out_of_memory(request.model, "trying two texts together", "fewer --shots"):
            log.info("batches: %s", trials.result)
            trials.check_causality("benchmarks")
        self._batch_rule = trials.result.rule

        # Texts of a tree are neighbours, so a model whose states depend on neighbours takes none.
        self._shares_prefixes = (
            prefix_sharing != "off"
            and self._batch_rule is BatchRule.ANY
            and supports_prefix_trees(self._tracer, max(map(len, texts)))
        )
        if prefix_sharing == "on" and not self._shares_prefixes:
            raise ModelError(
                f"prefix_sharing 'on': {request.model.name} does not take trees of texts; leave it "
                "to auto"
            )
        if self._shares_prefixes:
            log.info("prefix sharing: on, what texts begin with is computed once")
        else:
            log.info("prefix sharing: off, each text is computed by itself")

    @property
    def verdict(self) -> ReplayVerdict:
        """How far the replay of layers was proven to be the model."""
        return self._tracer.proof.verdict

    def pack(self, examples: Sequence[Example], most: int | None = None) -> Packed:
        """A block's texts as batches; in prefix trees if the model takes them.

        Args:
            examples: of one block.
            most: positions that a batch of several rows may have; None for any number.
        """
        if self._shares_prefixes:
            model = self._request.model
            pad_id, costs = model.tokenizer.pad_token_id or 0, costs_on(model.device.type)
            return pack_prefix_trees(windows_of(examples), pad_id, **costs, most=most)
        return self._pack_rows(examples, most)

    def _pack_rows(self, examples: Sequence[Example], most: int | None) -> Packed:
        model = self._request.model
        pad_id, costs = model.tokenizer.pad_token_id or 0, costs_on(model.device.type)
        windows, rule = windows_of(examples), self._batch_rule
        return pack_rows(windows, pad_id, **costs, batch_rule=rule, most=most)

    def score(
        self,
        examples: Sequence[Example],
        packed: Packed,
        pending: Sequence[int],
        finish: Callable[[int, dict[str, Any]], None],
        most: int | None = None,
    ) -> None:
        """A block's log-likelihoods under the pending plans.

        Args:
            examples: of one block.
            packed: their texts, from `pack`.
            pending: indices of the plans to run.
            finish: called per plan with its index and its arrays: `log_likelihood` and `is_greedy`
                `[request]`, `score` `[example, metric]`.
            most: positions of a batch of rows, where trees have to be taken apart.
        """
        import torch

        from repsim.models.logits import cut_targets

        # A request's log-likelihood is the sum over its targets, in one window or several.
        requests = [question for example in examples for question in example.requests]
        request_of_window = np.repeat(
            np.arange(len(requests)), [len(question.windows) for question in requests]
        )
        request_of_target = request_of_window[packed.window]
        plan_at_node = {self._trie.ends[plan]: plan for plan in pending}
        device = self._request.model.device
        targets = cut_targets(
            torch.from_numpy(packed.token), torch.from_numpy(packed.target), device
        )
        in_trees = packed.batches[0].attention_mask is not None
        spoilt_plans: list[int] = []

        def settle(scored: _Scored) -> None:
            plan, logprob, likeliest = scored.plan, *scored.fetch()
            sums = np.bincount(request_of_target, logprob.double().numpy(), len(requests))
            finite = np.isfinite(sums)
            if in_trees and not finite.all():
                # A masked token still has a part in attention, as 0 x NaN: one text's infinity
                # spoils the texts next to it.
                spoilt_plans.append(plan)
                return

            # Greedy is an answer of which every target is the likeliest token.
            misses = np.bincount(request_of_target, ~likeliest.numpy(), len(requests))
            is_greedy = misses == 0
            log_likelihoods = np.where(finite, sums, np.nan)
            flags = np.where(finite, is_greedy, NOT_FINITE).astype(np.int8)
            answers = list(zip(log_likelihoods.tolist(), is_greedy.tolist(), strict=True))
            scores = score_examples(self._request, self._layout, examples, answers)
            finish(plan, {"log_likelihood": log_likelihoods, "is_greedy": flags, "score": scores})

        ahead = plans_ahead(device)
        waiting: deque[_Scored] = deque()

        def consume(state: NodeState) -> None:
            logprob, likeliest = self._tracer.score(state.hidden, targets)
            waiting.append(_Scored(plan_at_node[state.node], logprob, likeliest))
            while len(waiting) > ahead:
                settle(waiting.popleft())

        self._tracer.run(self._trie, packed.batches, consume, nodes=plan_at_node.keys())
        while waiting:
            settle(waiting.popleft())
        if spoilt_plans:
            # In rows only the texts that are not finite themselves are lost.
            self.score(examples, self._pack_rows(examples, most), spoilt_plans, finish)
