"""Captures of texts that are no file, and of chats: what the store keeps, and how it goes on."""

import copy
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import repsim
from repsim import models
from repsim.data.corpus import read_corpus
from repsim.errors import DataError, RepsimError
from repsim.options import IN_MEMORY

TEXTS = ["the time of the day", "a word and the next", "of the sea"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }} {{ message.content }} "
    "{{ eos_token }}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    return models.load(str(tiny_folder))


@pytest.fixture(scope="module")
def chat_model(model: models.Model) -> models.Model:
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return replace(model, tokenizer=tokenizer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.zarr"


# In memory


def test_texts_in_memory_are_those_of_a_file(
    model: models.Model, tmp_path: Path, path: Path
) -> None:
    (tmp_path / "memory.txt").write_text("\n".join(TEXTS))
    of_file = repsim.capture(model, corpus=tmp_path / "memory.txt", out=tmp_path / "f.zarr")
    of_list = repsim.capture(model, corpus=TEXTS, out=path)
    of_table = repsim.capture(
        model, corpus=pd.DataFrame({"body": TEXTS}), field="body", out=tmp_path / "t.zarr"
    )
    for capture in (of_list, of_table):
        assert capture.samples.values.tolist() == of_file.samples.values.tolist()
        assert capture.identity == of_file.identity
    # The same texts go on wherever they come from; others do not.
    assert repsim.capture(model, corpus=pd.Series(TEXTS), out=path).missing == 0
    with pytest.raises(RepsimError, match="add --append"):
        repsim.capture(model, corpus=[*TEXTS, "in the house"], out=path)
    grown = repsim.capture(model, corpus=[*TEXTS, "in the house"], out=path, append=True)
    assert grown.samples.size == 4


def test_a_store_keeps_no_text_that_was_in_memory(model: models.Model, path: Path) -> None:
    capture = repsim.capture(model, corpus=TEXTS, plan="skip:start=1", out=path)
    assert capture.dataset.attrs["requests"][0]["corpus"] == IN_MEMORY
    for text in TEXTS:
        assert text not in (path / "zarr.json").read_text()
    call = f"repsim.capture('tiny-llama', plan=['skip:start=1'], corpus=corpus, out={str(path)!r})"
    assert capture.info["made by"] == call


def test_repair_of_texts_in_memory_is_a_call_that_works(model: models.Model, path: Path) -> None:
    """No command for the shell could name them."""
    repsim.capture(model, corpus=TEXTS, out=path)
    (path / "hidden" / "c" / "2" / "0" / "0").unlink()
    advice, _ = repsim.stores.repair_advice(path, repsim.verify(path))
    beginning, call = advice.split(": ", 1)
    assert beginning == "Repair in Python, handing over the same corpus"
    assert call.startswith("repsim.capture('tiny-llama', ")
    names = {"repsim": repsim, "corpus": TEXTS}
    eval(call.replace("'tiny-llama'", "MODEL"), {**names, "MODEL": model})
    assert not repsim.verify(path).damages


def test_other_texts_in_memory_have_another_store_by_default(
    model: models.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path))
    places = {str(repsim.capture(model, corpus=texts).path) for texts in (TEXTS, TEXTS[:2], TEXTS)}
    assert len(places) == 2
    for place in places:
        assert re.fullmatch(r"tiny-llama-\w{6}-memory-\w{6}-baseline\.zarr", Path(place).name)


def test_what_came_from_standard_input_says_so(
    model: models.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    capture = repsim.capture(model, corpus="-", out=path)
    assert (capture.identity["corpus"], capture.samples.size) == ("stdin", 3)
    (path / "hidden" / "c" / "2" / "0" / "0").unlink()
    command, remark, _ = repsim.stores.repair_advice(path, repsim.verify(path))
    assert " --corpus - " in command
    assert remark == "In it - stands for standard input: pipe the same texts to it."


# Chats


def test_a_chat_template_is_kept_and_is_another_corpus(
    chat_model: models.Model, path: Path
) -> None:
    keywords: dict[str, Any] = {"apply_chat_template": True, "system_instruction": "in the house"}
    capture = repsim.capture(chat_model, corpus=TEXTS, out=path, **keywords)
    tokens, tokenizer = capture.tokens, chat_model.tokenizer
    for row, key in enumerate(capture.samples.values.tolist()):
        (text,) = (text for text in TEXTS if key_of(text) == key)
        messages = [
            {"role": "system", "content": "in the house"},
            {"role": "user", "content": text},
        ]
        expected = tokenizer.apply_chat_template(messages, return_dict=False)
        assert tokens["token_id"].values[tokens["sample"].values == row].tolist() == expected
    request = capture.dataset.attrs["requests"][0]
    assert {name: request[name] for name in keywords} == keywords
    assert repsim.capture(chat_model, corpus=TEXTS, out=path, **keywords).missing == 0
    others: list[dict[str, Any]] = [{}, {"apply_chat_template": True}]
    for options in others:
        with pytest.raises(RepsimError, match="other texts, --max-tokens or chat template"):
            repsim.capture(chat_model, corpus=TEXTS, out=path, **options)


def key_of(text: str) -> str:
    return read_corpus([text]).texts[0].key


def test_conversations_are_formatted_whole(
    chat_model: models.Model, tmp_path: Path, path: Path
) -> None:
    talk = [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": "of a day"}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    keywords: dict[str, Any] = {"corpus": tmp_path / "talks.jsonl", "field": "messages"}
    capture = repsim.capture(chat_model, apply_chat_template=True, out=path, **keywords)
    expected = chat_model.tokenizer.apply_chat_template(talk, return_dict=False)
    assert capture.tokens["token_id"].values.tolist() == expected
    with pytest.raises(DataError, match=r"line 1: field 'messages' holds a conversation, not text"):
        repsim.capture(chat_model, out=path, **keywords)


def test_chats_that_are_refused(model: models.Model, path: Path) -> None:
    with pytest.raises(RepsimError, match=r"^--system-instruction: .* add --apply-chat-template$"):
        repsim.capture("no such model", corpus=TEXTS, system_instruction="of", out=path)
    with pytest.raises(RepsimError, match=r"^--apply-chat-template: .* has no chat template; "):
        repsim.capture(model, corpus=TEXTS, apply_chat_template=True, out=path)
    assert not path.exists()
