"""Plans from files: one per line, YAML, JSON, mergekit's slices; and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from repsim.errors import PlanError
from repsim.plans import Plan, read_plans, resolve

T = 30
MERGE = """\
slices:
  - sources:
      - model: some/model
        layer_range: [0, 16]
  - sources:
      - model: some/model
        layer_range: [8, 24]
  - sources: [{model: some/model, layer_range: [29, 30]}]
merge_method: passthrough
dtype: bfloat16
"""
FORMS = {"late": "0-3, 8-29", "one": "5", "x": "skip:start=3"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_texts_and_plans_are_handed_on() -> None:
    plan = Plan.from_steps([0, (1, 2)])
    assert read_plans("baseline") == ["baseline"]
    assert read_plans(plan) == [plan]
    assert read_plans(["fig2", plan, "late=0-3"]) == ["fig2", plan, "late=0-3"]
    assert read_plans(()) == []


def test_a_mapping_gives_names() -> None:
    plan = Plan.from_steps([0, (1, 2)])
    assert read_plans({"late": "0-3", "pair": plan}) == ["late=0-3", "pair=0, (1|2)"]
    (late, pair) = resolve(read_plans({"late": "0-3", "pair": plan}), T)
    assert (late.name, pair.name, pair.plan) == ("late", "pair", plan)


def test_a_line_is_a_plan(folder: Path) -> None:
    text = "\ufeff# mine\n\nlate = 0-3, 8-29  # without the middle\r\n  skip:start=3\nfig4\n"
    (folder / "own plans.txt").write_text(text)
    assert read_plans("@own plans.txt") == ["late = 0-3, 8-29", "skip:start=3", "fig4"]
    assert read_plans(["baseline", " @own plans.txt "])[:2] == ["baseline", "late = 0-3, 8-29"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", yaml.safe_dump(FORMS)),
        ("a.yml", yaml.safe_dump([{name: plan} for name, plan in FORMS.items()])),
        ("a.YAML", "- late=0-3, 8-29\n- one=5\n- x=skip:start=3\n"),
        ("a.json", json.dumps({**FORMS, "one": 5})),
        ("a.txt", "".join(f"{name}={plan}\n" for name, plan in FORMS.items())),
    ],
)
def test_every_form_says_the_same(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    assert read_plans(f"@{name}") == [f"{name}={plan}" for name, plan in FORMS.items()]


def test_slices_of_mergekit(folder: Path) -> None:
    """The layers that mergekit stacks, in a plain loop over its configuration."""
    (folder / "merge.yml").write_text(MERGE)
    layers = [
        layer
        for part in yaml.safe_load(MERGE)["slices"]
        for layer in range(*part["sources"][0]["layer_range"])
    ]
    (named,) = resolve(read_plans("@merge.yml"), T)
    assert named.plan == Plan.from_steps(layers)
    assert named.name == named.plan.text == "0-15, 8-23, 29"
    assert read_plans("big = @merge.yml") == ["big=0-15, 8-23, 29"]
    slices = {"slices": yaml.safe_load(MERGE)["slices"]}
    (folder / "several.json").write_text(json.dumps({"big": slices, "late": "0-3"}))
    assert read_plans("@several.json") == ["big=0-15, 8-23, 29", "late=0-3"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "# nothing\n", "@a.txt: no plan in it; write one per line"),
        ("a.txt", "0-3\n@b.txt\n", "'@b.txt': a file holds plans, not names of files"),
        ("a.json", "{", "@a.json: not JSON (Expecting property name"),
        ("a.json", "[" * 5000, "@a.json: not JSON (maximum recursion"),
        ("a.json", '{"a": "0-1", "a": "0-2"}', "@a.json: a is there twice"),
        ("a.json", '"0-3"', "@a.json: write a list of plans, a mapping from names to plans, or"),
        ("a.json", "[[0, 1]]", "plan 1 is a list; write it as text, e.g. 0-3, 8-29"),
        ("a.yml", "a: [", "@a.yml: not YAML (while parsing"),
        ("a.yml", "a: [0, 1]", "@a.yml: a: not a plan; write a list"),
        ("a.yml", "? [a, b]\n: 0-3", "@a.yml: a name that is no text; write a list"),
        ("a.yml", "&a [*a]", "@a.yml: not YAML (maximum recursion"),
        ("a.yml", "my plan: 0-3", "'my plan' is no name for a plan"),
        ("a.yml", MERGE.replace("passthrough", "linear"), "merge_method linear mixes weights"),
        ("a.yml", "models: [{model: a}]\nmerge_method: slerp", "merge_method slerp mixes weights"),
        ("a.yml", MERGE.replace("some/model", "other/model", 1), "other/model and some/model; a"),
        ("a.yml", MERGE.replace("[0, 16]", "[16, 16]"), "slice 1: layer_range [16, 16] holds no"),
        ("a.yml", MERGE.replace("[0, 16]", "[-1, 16]"), "write [FIRST, END], END left out"),
        ("a.yml", MERGE.replace("[0, 16]", "all"), "slice 1: layer_range 'all'; write"),
        ("a.yml", f"{MERGE}parameters: {{scale: 0.5}}", "parameters: no plan says that; leave it"),
        ("a.yml", MERGE.replace("- sources", "- residual_weight: 1\n    sources", 1), "residual_w"),
        ("a.yml", "slices: []", "slices: not a list of slices; write sources: ["),
        ("a.yml", "slices: [{}]", "slice 1: no sources; write"),
        ("a.yml", "slices: [{sources: [{}, {}]}]", "slice 1: 2 sources; a plan runs the layers of"),
    ],
)  # fmt: skip
def test_files_that_are_refused(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(PlanError) as caught:
        read_plans(f"@{name}")
    assert message in str(caught.value)


def test_what_is_no_file_of_plans(folder: Path) -> None:
    (folder / "bytes.txt").write_bytes(b"0-3\n\xff\n")
    (folder / "two.txt").write_text("0-3\n0-4\n")
    for request, message in (
        ("@none.txt", r"@none.txt: cannot be read \(No such file or directory\); name a file"),
        ("@", r"@: cannot be read \(Is a directory\)"),
        ("@bytes.txt", "@bytes.txt: not text in UTF-8"),
        ("x=@two.txt", "x=@two.txt: the file names its plans, or holds several; write @two.txt"),
        ({"la te": "0-3"}, "'la te' is no name for a plan"),
        ({"late": [0, 1]}, r"late: \[0, 1\] is not a plan; give a text, or Plan.from_steps"),
        ({3: "0-1"}, "3 is no name for a plan; give a text"),
    ):
        with pytest.raises(PlanError, match=message):
            read_plans(request)  # type: ignore[arg-type]
