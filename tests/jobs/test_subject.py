"""Default places of stores: those of today for common calls, none for two requests, no path."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr

from repsim.jobs.subject import default_store
from repsim.models import Model
from repsim.storage.metadata import SCHEMA_ATTRIBUTE
from support.models import make

LONG = [f"skip:start={start}" for start in range(15)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPSIM_CACHE", "cache")
    return tmp_path


def name_of(
    model: str | Model = "smollm2-135m",
    over: Any = ("builtin",),
    plans: Any = ("baseline",),
    stack: str | None = None,
    **request: Any,
) -> str:
    path = default_store("captures", model, stack, over, plans, **request)
    assert path.parent == Path("cache/captures")
    return path.name


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ({}, "smollm2-135m-builtin-baseline"),
        ({"plans": ["fig4", "fig2"]}, "smollm2-135m-builtin-fig4+fig2"),
        ({"plans": ["skip:start=3"]}, "smollm2-135m-builtin-skip-start=3"),
        ({"model": "org/name", "over": ["glue-sst2-test"]}, "org-name-glue-sst2-test-baseline"),
        ({"stack": "model.layers"}, "smollm2-135m-model.layers-builtin-baseline"),
        ({"over": ["grammar", "recall"]}, "smollm2-135m-grammar+recall-baseline"),
    ],
)  # fmt: skip
def test_common_calls_keep_their_places(call: Any, name: str) -> None:
    assert name_of(**call) == f"{name}.zarr"


@pytest.mark.parametrize(
    "calls",
    [
        # Lists of plans that are cut; plans whose texts look alike.
        [{"plans": [*LONG, "fig2"]}, {"plans": [*LONG, "fig4"]}, {"plans": LONG}],
        [{"plans": ["0-5"]}, {"plans": ["0, 5"]}, {"plans": ["(0|5)"]}],
        # Files of the same name.
        [{"over": [Path(file)]} for file in ("/a/b.txt", "/c/b.txt", "b.txt", "/a/b.jsonl")],
        [{"over": [Path("/a/builtin.txt")]}, {}],
        # Data of the hub, and of folders.
        [{"over": ["recall", *more]} for more in ((), [Path("/a/rows")], [Path("/b/rows")])],
    ],
)
def test_no_two_requests_share_a_place(calls: list[Any]) -> None:
    names = [name_of(**call) for call in calls]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 125 and "/" not in name for name in names)


def test_models_in_folders_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in ("a", "b"):
        (tmp_path / home / "tuned").mkdir(parents=True)
    names = {name_of(model=str(tmp_path / home / "tuned")) for home in ("a", "b")}
    assert len(names) == 2
    assert name_of(model="a/tuned") in names
    assert "pytest" not in "".join(names)
    # One that was loaded from there is the same model.
    loaded = replace(make("llama"), name="tuned")
    assert name_of(model=loaded) == "tuned-builtin-baseline.zarr"
    monkeypatch.setattr(loaded.module.config, "_name_or_path", str(tmp_path / "b" / "tuned"))
    assert name_of(model=loaded) == name_of(model="b/tuned")


def test_a_store_of_an_earlier_release_is_found_by_the_same_request(tmp_path: Path) -> None:
    texts: dict[str, Any] = {"over": [Path("own.txt")], "corpus": "own.txt"}
    named, cut = name_of(**texts), name_of(plans=LONG)
    requests = {
        "smollm2-135m-own-baseline.zarr": {"plan": ["baseline"], "corpus": "own.txt"},
        f"smollm2-135m-builtin-{'+'.join(LONG).replace(':', '-')}"[:120] + ".zarr": {"plan": LONG},
    }
    for earlier, request in requests.items():
        attributes = {SCHEMA_ATTRIBUTE: 3, "extent": {}, "requests": [request]}
        zarr.create_group(tmp_path / "cache/captures" / earlier, attributes=attributes)
    assert [name_of(**texts), name_of(plans=LONG)] == list(requests)
    # Of other plans, or of another file, is another store.
    assert name_of(plans=[*LONG, "fig2"]) != cut
    assert name_of(**{**texts, "over": [Path("other/own.txt")], "corpus": "x.txt"}) != named
    assert name_of(over=[Path("own.txt")], corpus=None) == named
