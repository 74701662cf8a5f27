"""Wrong calls, one line each: what is asked, and what the one line of the answer says."""

from pathlib import Path

import pytest

from support.cli import Call, tree

MERGE = """\
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [2, 6]}]
"""
FILES = {"latin1.txt": b"caf\xe9\n", "none.txt": b"# none\n", "merge.yml": MERGE.encode()}
CALLS = (
    # Plans
    ("plans show late=", "an empty step; write a step as 7"),
    ("plans show drop=0-3", "drop is a family; give the plan another name"),
    ("plans show fig2=0-3", "fig2 is a set; give the plan another name"),
    ("plans show x=fig4", "x=fig4: stands for several plans; a name is for one"),
    ("plans show 3=4", "'3' is no name for a plan; begin with a letter"),
    ("plans show all", "all: the plans of a store, and there is none"),
    ("plans show @", "@: cannot be read"),
    ("plans show @{here}/lost.txt", "cannot be read (No such file or directory); name a file of"),
    ("plans show @{here}/none.txt", "no plan in it; write one per line"),
    ("plans show @{here}/latin1.txt", "not text in UTF-8"),
    ("plans show @{here}/merge.yml", "layers of a and b; a plan runs the layers of one model"),
    ("plans show 5.conv", "'5.conv': not a step"),
    ("plans show 0-3*2", "a range takes no count; write (0-3)*2"),
    ("plans show 3*0", "a count is at least 1"),
    ("plans show (1|1)", "1 is there twice; name it once"),
    ("plans show 0,,2", "an empty step"),
    ("plans show skip", "skip: start is missing; write skip:start=.."),
    ("plans show skip:begin=3", "skip does not take it; write skip:start=.."),
    ("plans show skip:start=3,start=4", "start is there twice; write start=A|B"),
    ("plans show skip:start=5..2", "start=5..2: runs backwards; write 2..5"),
    ("plans show random:start=0,seed=0..", "there is no largest one; write both ends"),
    ("plans show fig4:start=3", "fig4 is a set and takes no parameters; write fig4"),
    ("plans show painter", "did you mean painters?"),
    ("plans show drop_block:first=4,last=1", "no block; last is 4 to 29"),
    ("plans show 0-40 --layers 32", "layer 40: a 32-layer model allows 0 to 31"),
    ("plans show baseline --layers 0", "--layers"),
    ("plans show baseline --layers deep", "--layers"),
    ("plans show", "plan"),
    ("plans draw baseline", "draw"),
    # Captures
    ("capture {model} --plan all", "all: the plans of a store, and there is none"),
    ("capture {model} --plan a=0-3 --plan a=0-4", "a: names two plans, 0-3 and 0-4"),
    ("capture {model} --plan a=0-3 --plan b=0-3", "a and b: the same plan (0-3); name it once"),
    ("capture {model} --plan @{here}/lost.yml", "cannot be read"),
    ("capture {model} --revision main", "is not from the hub, where revisions are"),
    ("capture --corpus hf:glue", "write hf:name/config:split:field"),
    ("capture --tokens every:0", "every:0"),
    ("capture --keep some", "choose all or none"),
    ("capture --keep none --statistics geometry", "it needs the states themselves"),
    ("capture --tokens last --logprobs", "nothing follows a sample's last token"),
    ("capture --max-tokens 0", "--max-tokens"),
    ("capture --batch-tokens none", "--batch-tokens"),
    ("capture --max-bytes -5", "write e.g. 500MB, 2TB or 10GiB"),
    ("capture --limit 1.5", "--limit"),
    ("capture --out", "--out"),
    ("capture one two", "two"),
    ("capture {here}", "no config.json"),
    ("capture {here}/lost.gguf", "no such file"),
    ("capture ./lost", "model './lost': no such folder"),
    ("capture {here}/latin1.txt", "a file that is neither GGUF nor pickled weights"),
    # Evaluations
    ("evaluate --shots -1", "--shots"),
    ("evaluate --limit 0", "--limit"),
    ("evaluate --prefix-sharing some", "choose auto, on or off"),
    ("evaluate --max-bytes 1GB", "--max-bytes"),
    ("evaluate --data-dir {here}/none.txt", "--data-dir"),
    ("evaluate --plan @{here}/none.txt", "no plan in it"),
    ("evaluate {model} --tasks grammar --plan late=0-9", "layer 9: a 6-layer model allows 0 to 5"),
    # Stores
    ("verify", "STORE"),
    ("verify {store} --corpus {here}/lost.txt", "--corpus"),
    ("info {store} {store}", "unexpected extra argument"),
    ("info ftp://here/a.zarr", "s3://, gs:// or az:// URL"),
    # Analyses
    ("analyze cosine", "STORE"),
    ("analyze norms {store} --plan late", "'late': unknown; families: baseline"),
    ("analyze norms {store} --plan late=0-2", "plan '0-2' is not in"),
    ("analyze norms {store} --plan @{here}/none.txt", "no plan in it"),
    ("analyze norms {store} --resamples 1", "resamples=1: at least 2"),
    ("analyze norms {store} --resamples few", "--resamples"),
    ("analyze norms {store} --label a --label b", "--label: 2 for 1 stores"),
    ("analyze norms {store} --style lost.mplstyle", "lost.mplstyle"),
    ("analyze similarity {store} --measure ckas", "--measure"),
    ("analyze cosine {store} --figure 2", "--figure"),
    # No command
    ("--versions", "--versions"),
    ("-v", "-v"),
    ("verfy {store}", "Did you mean 'verify'?"),
)


@pytest.mark.parametrize(("words", "says"), CALLS, ids=[words for words, _ in CALLS])
def test_a_wrong_call_is_one_line_and_status_2_and_leaves_nothing(
    words: str,
    says: str,
    call: Call,
    store: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("REPSIM_CACHE", str(tmp_path / "cache"))
    places = {"here": tmp_path, "store": store, "model": tiny_folder}
    before = tree(tmp_path) | tree(store)
    done = call(*(word.format(**places) for word in words.split()))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("repsim: ")
    assert says in line
    assert line.lower().count("did you mean") <= 1
    assert done.stdout == ""
    assert tree(tmp_path) | tree(store) == before
