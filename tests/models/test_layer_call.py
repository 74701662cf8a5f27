import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor

from repsim.models.layer_call import Join, logits_of
from repsim.plans import Application, Step
from support.models import make


def join_of(members: int) -> Join:
    return Join(Step(tuple(map(Application, range(members)))))


def joined(join: Join, *outputs: Tensor) -> list[Tensor | None]:
    return [join.add(position, output) for position, output in enumerate(outputs)]


def test_mean_by_hand() -> None:
    join = join_of(3)
    outputs = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    for _ in range(2):  # the second time begins anew
        *earlier, mean = joined(join, *outputs)
        assert earlier == [None, None]
        assert mean is not None
        assert mean.tolist() == [3.0, 30.0]


def test_the_mean_of_one_is_that_very_state() -> None:
    state = torch.tensor([0.1], dtype=torch.bfloat16)
    assert join_of(1).add(0, state) is state


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
    *_, mean = joined(join_of(len(values)), *torch.tensor(values, dtype=dtype)[:, None])
    assert mean is not None
    assert mean.dtype == dtype
    assert mean.item() == expected


def test_a_step_cut_short_does_not_spoil_the_next() -> None:
    join = join_of(2)
    join.add(0, torch.tensor([100.0]))
    assert joined(join, torch.tensor([1.0]), torch.tensor([3.0]))[1] == 2.0


def test_threads_join_outputs_of_their_own() -> None:
    """Each thread adds its first output before any adds its second."""
    join, all_began, means = join_of(2), threading.Barrier(4), {}

    def work(number: int) -> None:
        join.add(0, torch.tensor([float(number)]))
        all_began.wait()
        means[number] = join.add(1, torch.tensor([float(number) + 2])).item()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert means == {number: number + 1.0 for number in range(4)}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda join: pickle.loads(pickle.dumps(join))])
def test_copies_of_a_join(copied: object) -> None:
    assert copied(join_of(3)).step == join_of(3).step


def test_finishing_a_state_leaves_the_layers_in_their_place() -> None:
    model = make("llama")
    layers = model.module.model.layers
    with torch.inference_mode():
        logits_of(model.module, model.stack, torch.ones(2, 32), form=torch.empty(0))
    assert model.module.model.layers is layers
