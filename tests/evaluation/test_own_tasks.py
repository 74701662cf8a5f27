"""Tasks of one's own and lm-eval's ways of asking: the questions, numbers and files are lm-eval's
own, of the same folder, model and options.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

import repsim
from repsim import models
from repsim.errors import DataError, ModelError, PlanError, RepsimError, StoreError
from repsim.evaluation import lm_eval_results, tasks
from repsim.evaluation.prompting import Prompting
from repsim.evaluation.reader import Scores
from repsim.models import tracing
from support.cli import main
from support.own_tasks import CHAT_TEMPLATE, NAMES, write_own_tasks

PLANS = ("baseline", "skip:start=2")
LIMIT, SHOTS = 4, 2
# Of the machine, the folder of the call and its git history.
NOT_OURS = {"git_hash", "pretty_env_info", "upper_git_hash", "eot_token_id", "max_length"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chat": {
        "apply_chat_template": True,
        "system_instruction": "see the day",
        "gen_kwargs": "max_gen_toks=3,do_sample=false",
    },
    "one turn": {"apply_chat_template": True, "fewshot_as_multiturn": False},
}


@pytest.fixture(scope="module", autouse=True)
def settings_of_libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setenv("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")  # takes seconds
        yield


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> models.Model:
    loaded = models.load(str(tiny_folder))
    loaded.tokenizer.chat_template = CHAT_TEMPLATE
    return loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_tasks(tmp_path_factory.mktemp("tasks") / "own")


def asked_of(folder: Path, out: Path, **others: Any) -> dict[str, Any]:
    asked = {
        "tasks": NAMES,
        "include_path": folder,
        "limit": LIMIT,
        "num_fewshot": SHOTS,
        "out": out,
    }
    return {**asked, **others}


@dataclass
class Both:
    """One evaluation by lm-eval and by repsim.

    theirs: what `simple_evaluate` gave, as JSON.
    ours: the same by plan, as it was written.
    samples: lines of the samples files of the baseline, by task.
    """

    theirs: dict[str, Any]
    scores: Scores
    ours: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=OPTIONS)
def both(
    request: pytest.FixtureRequest,
    model: models.Model,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Both:
    options, place = OPTIONS[request.param], tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where lm-eval looks for data files
        theirs = simple_evaluate(
            HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=2),
            tasks=list(NAMES),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            num_fewshot=SHOTS,
            limit=LIMIT,
            bootstrap_iters=lm_eval_results.RESAMPLES,
            **{"fewshot_as_multiturn": bool(options), **options},
        )
        patch.chdir(place)
        scores = repsim.evaluate(
            model,
            plan=PLANS,
            output_path="results",
            log_samples=True,
            **asked_of(folder, place / "s.zarr", **options),
        )
    results, samples = {}, {}
    for path in (place / "results").rglob("*.json*"):
        kind, *name = path.stem.split("_")[:-1]
        if kind == "results":
            read = json.loads(path.read_text())
            results[read["repsim"]["plan_name"]] = read
        elif path.parent.name == "tiny-llama__baseline":
            samples["_".join(name)] = [json.loads(line) for line in path.read_text().splitlines()]
    as_json = lm_eval_results._to_json(theirs)
    return Both(json.loads(as_json), scores, results, samples)


def same(one: Any, other: Any, where: str = "") -> None:
    """Equal, and numbers close; numbers in lm-eval's samples are text."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where} {key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for first, second in zip(one, other, strict=True):
            same(first, second, where)
    else:
        try:
            assert float(one) == pytest.approx(float(other), rel=1e-5, abs=1e-6), where
        except (TypeError, ValueError):
            assert one == other, where


def test_results_are_those_of_lm_eval(both: Both) -> None:
    ours, theirs = both.ours["baseline"], both.theirs
    assert set(theirs) - set(ours) == {*NOT_OURS, "samples"}
    for name in ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples"):
        same(ours[name], theirs[name], name)
    same(ours["higher_is_better"], theirs["higher_is_better"])
    assert list(ours["results"]) == list(theirs["results"])
    assert ours["config"].keys() == theirs["config"].keys()
    for name in ("limit", "gen_kwargs", "bootstrap_iters", "fewshot_seed", "model_num_parameters"):
        same(ours["config"][name], theirs["config"][name], name)
    # Where the data lie is said in full.
    for config in (*ours["configs"].values(), *theirs["configs"].values()):
        del config["dataset_kwargs"]
    same(ours["configs"], theirs["configs"], "configs")


def test_lm_eval_s_table_of_them_has_the_store_s_numbers(both: Both) -> None:
    table = both.scores.table()
    for plan in PLANS:
        shown = make_table(both.ours[plan])
        assert make_table(both.scores.to_lm_eval(plan)).count("own_") == 5
        for row in table[table["plan_name"] == plan].itertuples():
            assert f"{row.value:.4f}" in shown
    assert make_table(both.ours["baseline"]) != make_table(both.ours[PLANS[1]])
    assert make_table(both.ours["baseline"], "groups") == make_table(both.theirs, "groups")


def test_samples_are_those_of_lm_eval(both: Both) -> None:
    """Questions byte for byte, in whatever form they are put."""
    assert both.samples.keys() == both.theirs["samples"].keys()
    for task, theirs in both.theirs["samples"].items():
        written = [lm_eval_results._as_written(sample) for sample in theirs]
        for ours, their in zip(both.samples[task], written, strict=True):
            assert ours["arguments"] == json.loads(json.dumps(their["arguments"]))
            same(ours, json.loads(json.dumps(their)), f"{task} {their['doc_id']}")


def test_a_store_alone_gives_the_numbers_without_settings(both: Both) -> None:
    alone = repsim.open(both.scores.path)
    assert isinstance(alone, Scores)
    results = alone.to_lm_eval(PLANS[1])
    of_run = both.ours[PLANS[1]]
    for name, values in results["results"].items():
        same(values, of_run["results"][name], name)
    assert set(results["results"]) == {name for name in of_run["results"] if name != "own_group"}
    assert results["configs"]["own_cloze"] == {
        "task": "own_cloze",
        "num_fewshot": SHOTS,
        "metadata": {"version": 2.0},
    }
    assert "groups" not in results
    # How many there are beyond the limit is only known where choices are counted.
    assert results["n-samples"]["own_first"] == {"original": 5, "effective": LIMIT}
    assert results["n-samples"]["own_cloze"] == {"original": None, "effective": LIMIT}
    with pytest.raises(PlanError, match="it holds: baseline, skip:start=2"):
        alone.to_lm_eval("skip:start=1")


# Where the files lie


def test_a_moved_folder_goes_on_and_no_path_is_kept(
    model: models.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By folder, by file, and with the data beside the settings."""
    first = shutil.copytree(folder, tmp_path / "first")
    asked = asked_of(first, tmp_path / "s.zarr", tasks=["own_w*", first / "own_first.yaml"])
    asked["tasks"] = [str(name) for name in asked["tasks"]]
    scores = repsim.evaluate(model, **asked)
    assert scores.tasks == ["own_writing", "own_first"]
    kept = json.dumps(scores.dataset.attrs["requests"])
    assert str(tmp_path) not in kept
    assert scores.dataset.attrs["requests"][0] | {"model": ""} == {
        "model": "",
        "plan": ["baseline"],
        "tasks": "own_w*,own_first.yaml",
        "limit": LIMIT,
        "shots": SHOTS,
        "include_path": "DIR",
    }
    assert scores.over == "own_w*+own_first"
    (command,) = scores.commands
    assert "--tasks 'own_w*,own_first.yaml' --limit 4 --shots 2 --include-path DIR" in command

    second = tmp_path / "elsewhere" / "second"
    second.parent.mkdir()
    first.rename(second)
    monkeypatch.setattr(tracing, "Tracer", None)  # nothing is computed
    again = repsim.evaluate(
        model,
        **{
            **asked,
            "include_path": second,
            "tasks": f"own_w*,{second / 'own_first.yaml'}",
        },
    )
    assert again.dataset.identical(scores.dataset)


def test_a_file_alone_needs_no_index(
    model: models.Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repsim.evaluation.task_sources.task_manager", None)
    names = ["own_cloze.yaml", "./own_pages.yaml", "own_cloze.yaml"]
    monkeypatch.chdir(folder)
    loaded = tasks.load(names, model, limit=1)
    assert [task.name for task in loaded] == ["own_cloze", "own_pages"]


def test_data_of_a_folder_come_before_a_task_s_own(
    model: models.Model, folder: Path, tmp_path: Path
) -> None:
    path = str(folder / "own_cloze.yaml")
    (task,) = tasks.load([path], model, data_dir=tmp_path)
    assert len(task.examples) == 5
    lines = (folder / "rows.jsonl").read_text().splitlines()
    (tmp_path / "own_cloze.test.jsonl").write_text(lines[0])
    (task,) = tasks.load([path], model, data_dir=tmp_path)
    assert len(task.examples) == 1


def test_a_function_elsewhere_is_the_same_task(
    model: models.Model, folder: Path, tmp_path: Path
) -> None:
    """Also one of which lm-eval only tells where it lies."""
    text = (folder / "own_writing.yaml").read_text()
    digests = set()
    for name in ("one", "two"):
        copied = shutil.copytree(folder, tmp_path / name)
        (copied / "own_functions.py").write_text(
            (folder / "own_functions.py").read_text()
            + "from lm_eval.api.samplers import FirstNSampler\nclass Own(FirstNSampler): pass\n"
        )
        sampler = "fewshot_config: {sampler: !function own_functions.Own}"
        (copied / "own_writing.yaml").write_text(f"{text}\n{sampler}\n")
        (task,) = tasks.load([str(copied / "own_writing.yaml")], model, shots=1)
        digests.add((task.digest, tuple(request.digest for request in task.examples[0].requests)))
    assert len(digests) == 1


# What is part of a task


def test_digests_of_tasks_asked_as_before(model: models.Model) -> None:
    """Those that stores of release 0.3 hold."""
    (task,) = tasks.load(["grammar"], model, limit=1)
    assert (task.digest, task.examples[0].requests[0].digest) == DIGESTS


DIGESTS = ("ed8a6e4aff11bae0", "31dc4454431c9a14")


@pytest.mark.parametrize(
    "prompting",
    [
        Prompting(system_instruction="see the day"),
        Prompting(apply_chat_template=True),
        Prompting(apply_chat_template=True, fewshot_as_multiturn=True),
        Prompting(gen_kwargs={"max_gen_toks": 3}),
    ],
)
def test_how_it_is_asked_is_part_of_a_task(
    model: models.Model, folder: Path, prompting: Prompting
) -> None:
    path = str(folder / "own_writing.yaml")
    (plain,) = tasks.load([path], model, limit=1, shots=2)
    (other,) = tasks.load([path], model, limit=1, shots=2, prompting=prompting)
    assert plain.digest != other.digest
    assert plain.examples[0].requests[0].digest != other.examples[0].requests[0].digest


def test_settings_for_writing_of_tasks_that_write_nothing(
    model: models.Model, folder: Path
) -> None:
    path = str(folder / "own_cloze.yaml")
    (plain,) = tasks.load([path], model, limit=1)
    (other,) = tasks.load([path], model, limit=1, prompting=Prompting(gen_kwargs={"a": 1}))
    assert plain.digest == other.digest


def test_another_way_of_asking_needs_another_store(
    model: models.Model, folder: Path, tmp_path: Path
) -> None:
    asked = asked_of(folder, tmp_path / "s.zarr", tasks="own_cloze", limit=1)
    repsim.evaluate(model, **asked)
    with pytest.raises(StoreError, match=r"of another kind .*; or another chat template"):
        repsim.evaluate(model, apply_chat_template=True, **asked)


def test_no_chat_as_turns_is_a_request_as_well(
    model: models.Model, folder: Path, tmp_path: Path
) -> None:
    asked = asked_of(folder, tmp_path / "s.zarr", tasks="own_cloze", limit=1)
    options = {"apply_chat_template": True, "fewshot_as_multiturn": False}
    scores = repsim.evaluate(model, **{**asked, **options, "gen_kwargs": {"max_gen_toks": 3}})
    (command,) = scores.commands
    for words in (
        "--apply-chat-template --no-fewshot-as-multiturn",
        """--gen-kwargs '{"max_gen_toks": 3}'""",
    ):
        assert words in command
    again = {**asked, **options, "gen_kwargs": "max_gen_toks=3", "append": True}
    assert len(repsim.evaluate(model, **again).commands) == 1


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fewshot_as_multiturn": True}, "only a chat has turns; add --apply-chat-template"),
        ({"apply_chat_template": "tool_use"}, "True or False; the tokenizer's own template"),
        ({"gen_kwargs": "temperature=0.7"}, "samples or searches; only greedy generation"),
        ({"gen_kwargs": "do_sample=true"}, "samples or searches; only greedy generation"),
        ({"gen_kwargs": "max_gen_toks"}, "not settings .*; write e.g. max_gen_toks=32"),
        ({"gen_kwargs": "max_gen_toks=many"}, "not settings"),
        ({"gen_kwargs": "{max_gen_toks: 3}"}, "not settings"),
        ({"log_samples": True}, "log_samples: name a folder for them with --output-path"),
        ({"output_path": "r.json"}, "name a folder; each plan gets a file of its own"),
        ({"output_path": " "}, "output_path: an empty path"),
        ({"include_path": "nowhere"}, "include_path 'nowhere': no such folder"),
        ({"shots": 1, "num_fewshot": 2}, "shots=1, num_fewshot=2: one option; give it once"),
    ],
)
def test_options_that_are_refused_before_a_model_is_loaded(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RepsimError, match=message) as caught:
        repsim.evaluate("no such model", **options)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_chat_template(model: models.Model) -> None:
    plain = replace(model, tokenizer=models.load(str(model.tokenizer.name_or_path)).tokenizer)
    with pytest.raises(ModelError, match="its tokenizer has no chat template; leave out"):
        tasks.load(["grammar"], plain, limit=1, prompting=Prompting(apply_chat_template=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "not a task's settings as lm-eval has them"),
        ("dataset_path: json", "not a task's settings .*; they begin with task: NAME"),
        ("task: own\ninclude: nowhere.yaml", "not a task's settings .*nowhere.yaml"),
        ("task: own\ndataset_path: json\ndataset_kwargs: {data_files: no.jsonl}", "cannot be read"),
        ("task: [", "not a task's settings"),
        (None, "no such file"),
    ],
)
def test_files_that_are_no_tasks(
    text: str | None, message: str, model: models.Model, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        tasks.load([str(path)], model)
    assert str(caught.value).startswith(f"task {path}: ")
    assert "\n" not in str(caught.value)


def test_a_line_of_a_task_s_own_data_is_named(
    model: models.Model, folder: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(folder, tmp_path / "own")
    rows = [json.loads(line) for line in (copied / "rows.jsonl").read_text().splitlines()]
    rows[3]["gold"] = 7
    (copied / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=r"^task own_cloze: .*rows.jsonl line 4: "):
        tasks.load([str(copied / "own_cloze.yaml")], model)


def test_results_are_written_of_a_store_that_is_complete(
    model: models.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_of(folder, tmp_path / "s.zarr", tasks="own_cloze", plan=["baseline", "0, 5"])
    repsim.evaluate(model, **asked)
    monkeypatch.setattr(tracing, "Tracer", None)
    repsim.evaluate(model, output_path=tmp_path / "r", **asked)
    folders = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert folders == ["tiny-llama__0-5-4faa8f", "tiny-llama__baseline"]
    (tmp_path / "file").touch()
    with pytest.raises(RepsimError, match="choose another --output-path"):
        repsim.evaluate(model, output_path=tmp_path / "file" / "r", **asked)


def test_the_command(
    tiny_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In lm-eval's spelling."""
    words = f"--tasks own_cloze --include_path {folder} --num_fewshot 1 --limit 2"
    files = f"--output_path {tmp_path / 'r'} --log_samples --out {tmp_path / 's.zarr'}"
    assert main("evaluate", tiny_folder, *words.split(), *files.split()) == 0
    (place,) = (tmp_path / "r").iterdir()
    assert sorted(path.name.split("_20")[0] for path in place.iterdir()) == [
        "results",
        "samples_own_cloze",
    ]
    assert "lm-eval's results: 2 files in" in capsys.readouterr().err
