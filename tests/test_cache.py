"""Names of files: short enough, the same for the same words, and another for other plans."""

import re
from pathlib import Path

import pytest

from repsim.cache import cache_folder, file_name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("norms", "skip:start=3"), "norms-skip-start=3"),
        (("a b", "", "c/d"), "a-b-c-d"),
        (("((x))", "1.5"), "x-1.5"),
        (("é", 7), "é-7"),
        (("../..", "/"), "..-.."),
        ((), ""),
    ],
)
def test_words_are_joined_by_dashes(words: tuple[object, ...], name: str) -> None:
    assert file_name(*words) == name


def test_a_name_of_names_is_itself() -> None:
    assert file_name(file_name("a b", "0, 5")) == file_name("a b", "0, 5")


def test_plans_that_look_alike_have_names_of_their_own() -> None:
    names = {file_name(plan, distinct=True) for plan in ("0-5", "0, 5", "(0|5)", "0-1, 5")}
    assert len(names) == 4
    assert file_name("0-5", distinct=True) == "0-5"
    assert file_name("skip:start=3", distinct=True) == "skip-start=3"


@pytest.mark.parametrize("letter", ["x", "é", "画"])
def test_a_long_name_is_cut_in_bytes_and_told_apart_by_a_digest(letter: str) -> None:
    long, longer = (file_name(letter * length, longest=200) for length in (1000, 1001))
    assert 190 <= len(long.encode()) <= 200
    assert long != longer
    assert file_name(letter * 1000, longest=None) == letter * 1000


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPSIM_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("REPSIM_CACHE")
    assert cache_folder() == Path("cache")


def test_a_path_is_its_last_part_and_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    names = {file_name("norms", Path(path)) for path in ("/a/b.txt", "/c/b.txt", "/c/b", "b.gz")}
    assert len(names) == 4
    assert all(re.fullmatch(r"norms-b-[0-9a-f]{6}", name) for name in names)
    assert file_name(Path("a/b.txt")) == file_name(Path("/a/x/../b.txt"))
    for name in ("Llama-3.1", "qwen2.5-0.5b", "m.Q4_1.gguf"):
        assert file_name(Path(name)).startswith(name.removesuffix(".gguf") + "-")
