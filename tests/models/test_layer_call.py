"""The joins of a parallel step."""

import copy
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from repsim import plans
from repsim.data.batching import Batch
from repsim.models.layer_call import JOINS, Join, join_of
from repsim.plans import Application, Step
from support.models import make
from support.oracles import assert_equal_but_for_rounding, last_states, naive, trace_plans


def mean_of(members: int) -> Join:
    return join_of(Step(tuple(map(Application, range(members)))))


def joined(join: Join, *outputs: Tensor) -> list[Tensor | None]:
    """What each output gives; the step's input is zero."""
    join.begin(torch.zeros_like(outputs[0]))
    return [join.add(output) for output in outputs]


def test_every_kind_of_join_is_computed() -> None:
    assert list(JOINS) == list(plans.JOIN_KINDS)


@pytest.mark.parametrize("kind", plans.JOIN_KINDS)
def test_one_output_is_that_very_state(kind: str) -> None:
    state = torch.tensor([0.1], dtype=torch.bfloat16)
    assert joined(join_of(Step((Application(0),), kind)), state) == [state]


def test_mean_by_hand() -> None:
    join = mean_of(3)
    outputs = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    for _ in range(2):  # the second time begins from nothing
        *earlier, mean = joined(join, *outputs)
        assert earlier == [None, None]
        assert mean is not None
        assert mean.tolist() == [3.0, 30.0]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (torch.float16, [60000.0, 60000.0, -60000.0], 20000.0),  # the sum would overflow
        # 256 + 1 is 256 in bfloat16, and the mean 51.25.
        (torch.bfloat16, [256.0, 1.0, 1.0, 1.0, 1.0], 52.0),
        (torch.float64, [1.0, 2.0**-40], (1.0 + 2.0**-40) / 2),
    ],
)
def test_sums_are_wide_and_rounded_once(
    dtype: torch.dtype, values: list[float], expected: float
) -> None:
    *_, mean = joined(mean_of(len(values)), *torch.tensor(values, dtype=dtype)[:, None])
    assert mean is not None
    assert mean.dtype == dtype
    assert mean.item() == expected


def test_a_step_cut_short_does_not_spoil_the_next() -> None:
    join = mean_of(2)
    join.begin(torch.zeros(1))
    join.add(torch.tensor([100.0]))
    assert joined(join, torch.tensor([1.0]), torch.tensor([3.0]))[1] == 2.0


def test_threads_join_outputs_of_their_own() -> None:
    """Each thread adds its first output before any adds its second."""
    join, all_began = mean_of(2), threading.Barrier(4)
    means: dict[int, Tensor | None] = {}

    def work(number: int) -> None:
        join.begin(torch.zeros(1))
        join.add(torch.tensor([float(number)]))
        all_began.wait()
        means[number] = join.add(torch.tensor([float(number) + 2]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert means == {number: number + 1.0 for number in range(4)}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda join: pickle.loads(pickle.dumps(join))])
def test_copies_of_a_join(copied: Callable[[Join], Join]) -> None:
    copied_join = copied(mean_of(3))
    assert copied_join.step == mean_of(3).step
    assert type(copied_join) is type(mean_of(3))


@pytest.mark.parametrize("kind", plans.JOIN_KINDS)
def test_trace_and_planned_model_join_as_a_plain_loop_does(kind: str) -> None:
    model, join = make("llama"), {kind: (1, 2, 4)}
    plan = plans.Plan.from_steps([0, join, join, 5])
    batch = Batch(np.arange(2, 14).reshape(2, 6), np.ones((2, 6), bool))
    expected = naive(model, plan, batch)
    (states,) = trace_plans(model, [plan], batch)
    for state, right in zip(states, expected, strict=True):
        assert_equal_but_for_rounding(state, right, model.layers)
    assert torch.equal(last_states(model, plan, batch), states[-1])
