"""What is added to names that are alike."""

import pytest

from repsim.plotting.labels import tell_apart

RUNS = [
    {"corpus": "builtin", "dtype": "float32", "folder": name} for name in ("run1", "run2", "run3")
]


@pytest.mark.parametrize(
    ("names", "parts", "added"),
    [
        ([], [], []),
        (["a"], RUNS[:1], [""]),
        (["a", "b"], RUNS[:2], ["", ""]),
        (["a", "a", "b"], RUNS, ["run1", "run2", ""]),
        (["a", "a"], [{"of": "x", "folder": "p"}, {"of": "y", "folder": "q"}], ["x", "y"]),
        (["a", "a"], [{"of": "x"}, {"of": ""}], ["x", ""]),
        (["a", "a"], [{"of": "x"}, {"of": "x"}], ["1", "2"]),
        (["a", "a", "a"], [{"of": "x"}, {"of": "y"}, {"of": "x"}], ["x, 1", "y", "x, 2"]),
        (
            ["a"] * 4,
            [{"of": of, "dtype": dtype} for of in "xy" for dtype in ("half", "full")],
            ["x, half", "x, full", "y, half", "y, full"],
        ),
    ],
)
def test_what_is_added(names: list[str], parts: list[dict[str, str]], added: list[str]) -> None:
    assert tell_apart(names, parts) == added
