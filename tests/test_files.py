"""Files that are whole or what they were."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from repsim.errors import RepsimError
from repsim.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_take_their_places_together(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "a.png", tmp_path / "new" / "a.pdf"]
    with replacing(paths, "") as (png, pdf):
        png.write_text("picture")
        assert not any(path.exists() for path in paths)
        pdf.write_text("page")
    assert [path.read_text() for path in paths] == ["picture", "page"]
    assert names(tmp_path / "new") == ["a.pdf", "a.png"]


def write_in_part(paths: Sequence[Path], problem: BaseException) -> None:
    with replacing(paths, "look elsewhere") as beside:
        for path in beside:
            path.write_text("new")
        raise problem


@pytest.mark.parametrize(
    "problem", [KeyboardInterrupt(), MemoryError(), ValueError(), SystemExit()]
)
def test_whoever_fails_half_way_leaves_what_was_there(
    tmp_path: Path, problem: BaseException
) -> None:
    paths = [tmp_path / "a.png", tmp_path / "a.pdf"]
    for path in paths:
        path.write_text("good")
    with pytest.raises(type(problem)):
        write_in_part(paths, problem)
    assert [path.read_text() for path in paths] == ["good", "good"]
    assert names(tmp_path) == ["a.pdf", "a.png"]


def test_what_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("good")
    with pytest.raises(
        RepsimError, match=r"a.png: cannot be written \(No space left on device\); look elsewhere$"
    ):
        write_in_part([tmp_path / "a.png"], OSError(28, "No space left on device"))
    assert (tmp_path / "a.png").read_text() == "good"
    assert names(tmp_path) == ["a.png"]


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "somebodys").write_text("good")
    (tmp_path / "a.nc").symlink_to(tmp_path / "somebodys")
    with replacing([tmp_path / "a.nc"], "") as (beside,):
        beside.write_text("new")
    assert (tmp_path / "somebodys").read_text() == "good"
    assert (tmp_path / "a.nc").read_text() == "new"
