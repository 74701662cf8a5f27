"""How many tokens make a block: by hand for cards and models of known sizes, and in runs."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import repsim
from repsim import models
from repsim.captures import run as capture_run
from repsim.evaluation import run as evaluation_run
from repsim.jobs import batch_size
from repsim.jobs.batch_size import (
    GpuRoom,
    TokenCosts,
    choose_batch_tokens,
    costs_of,
    count_alive,
    fitting_tokens,
)
from repsim.options import AUTO
from repsim.plans import PlanTrie, resolve
from repsim.storage.place_names import location_of
from support.evaluation import asked_of
from support.models import make

GB = 1 << 30
BF16 = {"itemsize": 2, "leaves_device": False}


def costs(units: int, inner: int, states: int, vocabulary: int, **more: Any) -> TokenCosts:
    return TokenCosts(units, inner, states, vocabulary, **{**BF16, **more})


# Values worked out by hand


def test_bytes_of_a_token_by_hand() -> None:
    # 2 states alive and 7 of the layer, 3 x 40 inside its MLP, in 2 bytes; a norm in 4.
    assert costs(10, 40, 2, 0).per_token == (9 * 10 + 3 * 40) * 2 + 2 * 10 * 4
    assert costs(10, 40, 2, 0).fixed == 0
    assert costs(10, 40, 2, 0).of_block(7) == 7 * costs(10, 40, 2, 0).per_token
    assert costs(10, 40, 2, 100).fixed == 512 * 100 * (2 + 8)


@pytest.mark.parametrize(
    ("free", "needed", "tokens"),
    [
        # 135 million: a card of 4 GB is enough for the most.
        (4 * GB, costs(576, 1536, 3, 49152), 65536),
        # 7B on cards with 120, 60, 8 and 1 GB left.
        (120 * GB, costs(4096, 11008, 3, 32000), 65536),
        (60 * GB, costs(4096, 11008, 3, 32000), 65536),
        (8 * GB, costs(4096, 11008, 3, 32000), 16384),
        (1 * GB, costs(4096, 11008, 3, 32000), 2048),
        # The same, all states kept: 128 MiB of a node's states.
        (120 * GB, costs(4096, 11008, 3, 32000, leaves_device=True), 16384),
        # A sweep that branches in every layer, and statistics over whole paths.
        (20 * GB, costs(4096, 11008, 3, 0), 32768),
        (20 * GB, costs(4096, 11008, 2 + 2 * 33, 0), 8192),
        # 70B, as far as a card of 141 GB has room for it, and on two such cards.
        (8 * GB, costs(8192, 28672, 3, 128256), 8192),
        (60 * GB, costs(8192, 28672, 3, 128256), 65536),
        # Nothing is free: the least, which out-of-memory then halves.
        (0, costs(8192, 28672, 3, 128256), 1024),
    ],
)
def test_what_fits_a_card(free: int, needed: TokenCosts, tokens: int) -> None:
    assert fitting_tokens(free, needed) == tokens


def test_it_is_a_power_of_two_that_grows_with_what_is_free() -> None:
    needed = costs(4096, 11008, 3, 32000)
    numbers = [fitting_tokens(free * GB // 4, needed) for free in range(200)]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1 << power for power in range(10, 17)}


@pytest.mark.parametrize(
    ("plans", "alive"),
    [
        (["baseline"], 2),
        (["drop:layer=0..5"], 3),  # the baseline's prefix, a drop on it, the state that is made
        # Each prefix of the first plan waits for the drop that branches off there.
        ([f"drop:layer={layer}" for layer in (5, 4, 3, 2, 1, 0)], 6),
    ],
)
def test_states_alive_by_hand(plans: list[str], alive: int) -> None:
    trie = PlanTrie.build(named.plan for named in resolve(plans, 6))
    assert count_alive(trie) == alive


def test_what_a_token_takes_of_a_model() -> None:
    trie = PlanTrie.build(named.plan for named in resolve(["baseline"], 6))
    options = {"logits": True, "leaves_device": False}
    found = costs_of(make("llama"), trie, **options, whole_paths=False)
    assert found == TokenCosts(32, 48, 2, 97, 4, False)
    assert costs_of(make("llama"), trie, **options, whole_paths=True).states == 2 + 2 * 7
    assert costs_of(make("gpt2"), trie, **options, whole_paths=False).inner == 4 * 32


# By what is there


def never() -> TokenCosts:
    raise AssertionError("asked for the costs")


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


def test_a_number_that_is_asked_for_rules_and_a_cpu_has_2048(tmp_path: Path) -> None:
    place = location_of(tmp_path / "none.zarr")
    assert choose_batch_tokens(100, place, make("llama"), never) == 100
    assert choose_batch_tokens(AUTO, place, make("llama"), never) == 2048


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A GPU, as far as the choice goes; what is free on it can be changed."""
    free = [40_000_000]
    monkeypatch.setattr(batch_size, "_gpu_room", lambda _model: GpuRoom(1_000_000, free[0]))
    for module in (capture_run, evaluation_run):
        monkeypatch.setattr(module, "kept_batch_tokens", lambda tokens, _model: tokens)
    return free


def chosen(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if line.startswith("batch tokens")]


def test_a_capture_keeps_what_was_chosen(
    model: models.Model, card: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "repsim")
    asked: dict[str, Any] = {"out": tmp_path / "c.zarr", "limit": 4, "max_tokens": 20}
    first = repsim.capture(model, **asked)
    (line,) = chosen(caplog)
    assert line == "batch tokens: 8,192 (auto: 40.0 MB are free on the GPU, a token takes 2.0 kB)"
    # A token takes 1,984 bytes: 9 states of 32 and 3 inner ones of 48 in float32, and a norm.
    memory = (
        "memory: the GPU will hold about 17.3 MB at most (1.0 MB now, 16.3 MB for 8,192 tokens)"
    )
    assert memory in caplog.messages
    assert first.dataset.attrs["requests"][0]["batch_tokens"] == 8192
    assert "--batch-tokens 8192" in first.commands[0]
    # Another card, more texts, another plan: the number stays.
    caplog.clear()
    card[0] = 4_000_000_000
    grown = repsim.capture(model, plan="skip:start=0", append=True, **{**asked, "limit": 6})
    assert chosen(caplog) == []
    assert [each["batch_tokens"] for each in grown.dataset.attrs["requests"]] == [8192, 8192]


def test_an_evaluation_keeps_what_was_chosen(
    model: models.Model, card: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "repsim")
    asked = asked_of(tmp_path / "s.zarr", plan="baseline", tasks="recall", batch_tokens=AUTO)
    first = repsim.evaluate(model, **asked)
    assert len(chosen(caplog)) == 1
    (request,) = first.dataset.attrs["requests"]
    caplog.clear()
    card[0] = 4_000_000_000
    grown = repsim.evaluate(model, **{**asked, "plan": "skip:start=0", "append": True})
    assert chosen(caplog) == []
    requests = grown.dataset.attrs["requests"]
    assert [each["batch_tokens"] for each in requests] == [request["batch_tokens"]] * 2


def test_on_a_cpu_a_store_says_no_number_and_one_that_says_one_is_resumed_with_it(
    model: models.Model, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"limit": 6, "max_tokens": 20}
    for number, kept in ((AUTO, None), (2048, None), (30, 30)):
        path = tmp_path / f"{number}.zarr"
        made = repsim.capture(model, out=path, batch_tokens=number, **asked)
        assert made.dataset.attrs["requests"][0].get("batch_tokens") == kept
        place = location_of(path)
        assert choose_batch_tokens(AUTO, place, model, never) == (kept or 2048)
    assert int(made.dataset["block"].max()) > 0
    grown = repsim.capture(model, out=path, append=True, **{**asked, "limit": 12})
    whole = tmp_path / "whole.zarr"
    whole_blocks = repsim.capture(model, out=whole, batch_tokens=30, **{**asked, "limit": 12})
    assert (grown.dataset["block"].values == whole_blocks.dataset["block"].values).all()


def test_what_is_free_on_the_fullest_card(monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch_size._gpu_room(make("llama")) is None
    free = {"cuda:0": (10, 100), "cuda:1": (7, 100)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: free[str(gpu)])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _gpu: 5)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _gpu: 3)
    weights = [SimpleNamespace(device=torch.device(name)) for name in ("cuda:0", "cuda:1", "cpu")]
    spread: Any = SimpleNamespace(
        module=SimpleNamespace(parameters=lambda: weights), device=torch.device("cuda:0")
    )
    assert batch_size._gpu_room(spread) == GpuRoom(used=3, free=7 + 5 - 3)
