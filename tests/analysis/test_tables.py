"""Tables as text: what is read back is what was written, and nothing is obeyed on the way."""

import io
import json
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from repsim.analysis import tables
from repsim.errors import RepsimError
from support.cli import NASTY

SPECIAL = "a_b & 50% #1 $x$ {y} ~z ^w \\v | *"


@pytest.fixture
def frame() -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "plan": ["baseline", SPECIAL],
            "plans": [3, 12],
            "score": [0.52301, np.nan],
            "score_standard_error": [0.0212, np.nan],
            "difference": [-0.1234, np.inf],
            "difference_low": [-0.31, np.nan],
            "difference_high": [0.05, np.nan],
        }
    )
    table.attrs["note"] = "what it is over"
    return table


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.52301, 0.0212, "0.523"),
        (0.52301, 0.0212 * 2, "0.52"),
        (0.52301, 0.0951, "0.52"),  # 0.10
        (0.52301, 0.0949, "0.52"),
        (123.456, 2.6, "123.5"),
        (123.456, 26.0, "123"),
        (0.5, 1e-9, "0.5000"),
        (0.5, 0.0, "0.5"),
        (1 / 3, np.nan, "0.3333"),
        (2.5e7, 1e3, "2.5000e+07"),
        (7.861e7, 1.138e8, "8e+07"),
        (1.138e8, 1.138e8, "1.1e+08"),
        (2.5e7, np.nan, "2.500e+07"),
        (1.25e-7, np.nan, "1.2e-07"),
        (-np.inf, np.nan, "-inf"),
        (np.nan, 0.1, ""),
    ],
)
def test_a_number_has_the_decimals_that_its_error_is_worth(
    value: float, error: float, text: str
) -> None:
    assert tables.number_text(value, error) == text


def test_numbers_in_mathematics() -> None:
    assert tables.number_text(2.5e7, latex=True) == r"$2.500 \times 10^{7}$"
    assert tables.number_text(1.25e-7, latex=True) == r"$1.2 \times 10^{-7}$"
    assert tables.number_text(-np.inf, latex=True) == r"$-\infty$"


def test_an_interval_or_an_error_stands_beside_its_number(frame: pd.DataFrame) -> None:
    cells = tables.merge_columns(frame)
    assert list(cells.columns) == ["plan", "plans", "score ± standard error", "difference [95 %]"]
    assert cells.iloc[0].tolist() == [
        "baseline",
        "3",
        "0.523 ± 0.021",
        "-0.12 [-0.31, 0.05]",
    ]
    assert cells.iloc[1].tolist()[2:] == ["", "inf"]


def test_plain_text_is_aligned_and_never_wrapped(frame: pd.DataFrame) -> None:
    frame.loc[1, "plan"] = "x" * 400
    lines = tables.render(frame).splitlines()
    assert lines[-1] == "what it is over"
    head, *rows = lines[:-1]
    assert len(rows) == 2
    start = head.index("score")
    assert rows[0][start:].startswith("0.523 ± 0.021")
    assert all(line == line.rstrip() and line.isprintable() for line in lines)
    assert not re.search(r"[\u2500-\u257f]", "".join(lines))


def test_markdown_is_a_table_whatever_is_in_it(frame: pd.DataFrame) -> None:
    *lines, empty, note = tables.render(frame, "md").splitlines()
    assert (empty, note) == ("", "what it is over")
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in cells} == {4}
    assert re.sub(r"\\(.)", r"\1", cells[3][0].strip()) == SPECIAL


def test_csv_and_json_give_back_every_column_and_digit(frame: pd.DataFrame) -> None:
    read = pd.read_csv(io.StringIO(tables.render(frame, "csv")))
    pd.testing.assert_frame_equal(read, frame, check_exact=True)
    records = json.loads(tables.render(frame, "json"))
    assert [list(record) for record in records] == [list(frame.columns)] * 2
    assert records[0]["score"] == 0.52301
    assert records[1]["score"] is None
    assert records[1]["plan"] == SPECIAL


def test_latex_escapes_what_it_would_obey(frame: pd.DataFrame) -> None:
    lines = tables.render(frame, "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{llll}"
    assert [lines[row] for row in (1, 3, 6)] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert lines[2] == r"plan & plans & score $\pm$ standard error & difference [95 \%] \\"
    assert lines[4] == r"baseline & $3$ & $0.523 \pm 0.021$ & $-0.12 \; [-0.31, 0.05]$ \\"
    assert lines[-1] == "% what it is over"
    commands = {
        r"\textbackslash ": "\\",
        r"\textasciitilde ": "~",
        r"\textasciicircum ": "^",
        **{f"\\{character}": character for character in "_&%#${}"},
    }
    cell = re.split(r"(?<!\\)&", lines[5])[0].strip()
    pattern = "|".join(map(re.escape, sorted(commands, key=len, reverse=True)))
    assert re.sub(pattern, lambda match: commands[match[0]], cell) == SPECIAL


@pytest.mark.parametrize("form", ["rich", "md", "latex"])
def test_names_of_strangers_reach_no_terminal_as_they_are(form: tables.Format) -> None:
    table = pd.DataFrame({NASTY: [1.0], "plan": [NASTY]})
    table.attrs["note"] = NASTY
    assert all(line.isprintable() for line in tables.render(table, form).split("\n"))


@pytest.mark.parametrize("width", [100, 72])
def test_a_terminal_wraps_texts_before_numbers(frame: pd.DataFrame, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    console.print(tables.rich_table(frame, width=width))
    shown = stream.getvalue()
    assert "─" in shown  # a line below the head
    assert "0.523 ± 0.021" in shown
    assert "-0.12 [-0.31, 0.05]" in shown
    assert all(len(line) <= width for line in shown.splitlines())


def test_nothing_is_lost_on_a_terminal_however_narrow(frame: pd.DataFrame) -> None:
    stream = io.StringIO()
    Console(file=stream, width=30).print(tables.rich_table(frame, width=30))
    cells = tables.merge_columns(frame)
    wanted = Counter("".join([*cells.columns, *cells.to_numpy().ravel()]))
    lost = wanted - Counter(stream.getvalue())
    assert set(lost) <= {" "}


@pytest.mark.parametrize("form", ["rich", "md", "latex", "csv", "json"])
def test_a_table_without_rows(form: tables.Format) -> None:
    assert tables.render(pd.DataFrame({"plan": [], "score": []}), form)


def test_an_unknown_format_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(RepsimError, match="format 'html': choose rich, md, csv, latex or json"):
        tables.render(frame, "html")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plans", "per_plan", "rows", "kept"),
    [(3, 2, 24, 6), (40, 5, 24, 20), (2, 30, 24, 24), (1, 30, 24, 24), (30, 1, 24, 24)],
)
def test_an_extract_is_of_whole_plans(plans: int, per_plan: int, rows: int, kept: int) -> None:
    frame = pd.DataFrame({"plan": np.repeat([f"plan {row}" for row in range(plans)], per_plan)})
    extract = tables.take_extract(frame, rows)
    assert len(extract) == kept
    assert extract["plan"].tolist() == frame["plan"].tolist()[:kept]
