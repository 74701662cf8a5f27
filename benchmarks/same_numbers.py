"""Do two commits compute the same numbers, bit for bit? Run by hand, with nothing else running:

    python benchmarks/same_numbers.py BEFORE AFTER [--folder FOLDER]

BEFORE and AFTER are checkouts, each with its `.venv` (`make .venv/.ready`). Both run the same
commands: the demo's capture, a capture under plans with log-probabilities, one that keeps
statistics alone, every analysis of them, an evaluation, and its analyses. Then every array of every
store and of every NetCDF file is compared, bit for bit; attributes are not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

PLANS = [
    "--plan",
    "fig2",
    "--plan",
    "parallel:start=10",
    "--plan",
    "looped_parallel:start=12,loops=3",
]
SUBLAYERS = ["--plan", "drop:layer=3,part=attn", "--plan", "drop:layer=3,part=mlp"]
RUNS = {
    "demo": ["capture"],
    "encoder": ["capture", "minilm-l6", "--limit", "8"],
    "plans": [
        *("capture", "--limit", "6", "--max-tokens", "48", "--logprobs", "--dtype", "float32"),
        *(*PLANS, *SUBLAYERS),
    ],
    "statistics": [
        *("capture", "--limit", "6", "--max-tokens", "64", "--keep", "none"),
        *("--statistics", "cosine,norms,blocks,similarity,drift"),
    ],
    "scores": ["evaluate", "--tasks", "offline", "--limit", "8", *PLANS, *SUBLAYERS],
}
ANALYSES = {
    "demo": [
        *(
            ["cosine", "--average", name]
            for name in ("token", "sequence", "centred", "without-sinks")
        ),
        *(
            ["similarity", "--measure", name, "--items", "256", "--permutations", "5"]
            for name in ("cka", "rsa", "mutual-knn", "procrustes")
        ),
        *(["clusters", "--of", name] for name in ("token", "cka")),
        ["blocks"],
        ["geometry"],
        ["norms"],
    ],
    "encoder": [["cosine"], ["geometry"]],
    "plans": [["drift", "--plan", "parallel:start=10"], ["norms", "--plan", "drop:layer=3"]],
    "statistics": [["cosine"], ["norms"], ["similarity", "--measure", "minibatch-cka"]],
    "scores": [["degradation"], ["latency", "--repeats", "0"]],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in ("before", "after"):
            run_commands(getattr(arguments, name).absolute(), folder / name)
        before, after = (arrays_in(folder / name) for name in ("before", "after"))
    differing = [key for key in before if key in after and not is_same(before[key], after[key])]
    only_one = sorted(before.keys() ^ after.keys())
    cells = sum(array.size for array in before.values())
    print(f"{len(before):,} arrays, {cells:,} numbers and texts compared")
    for key in differing:
        print(f"differs: {key}")
    for key in only_one:
        print(f"only {'before' if key in before else 'after'}: {key}")
    return 1 if differing or only_one else 0


def run_commands(checkout: Path, folder: Path) -> None:
    """Runs everything with a checkout's own environment, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(checkout / ".venv/bin/repsim")]
    environment = {**os.environ, "REPSIM_CACHE": str(checkout / "cache")}
    for name, run in RUNS.items():
        store = ["--out", str(folder / f"{name}.zarr"), "--quiet"]
        subprocess.run([*command, *run, *store], check=True, env=environment, cwd=checkout)
        for analysis, *options in ANALYSES[name]:
            words = ["analyze", analysis, store[1], *options, "--quiet"]
            figures = ["--figures", str(folder / "figures")]
            subprocess.run([*command, *words, *figures], check=True, env=environment, cwd=checkout)
        print(f"{checkout}: {name}", file=sys.stderr, flush=True)


def arrays_in(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of every store and NetCDF file, by where it is."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for store in sorted(folder.glob("*.zarr")):
        for path, item in zarr.open_group(store, mode="r").members(max_depth=None):
            if isinstance(item, zarr.Array):
                arrays[f"{store.name}/{path}"] = np.asarray(item[...])
    for file in sorted(folder.glob("figures/*.nc")):
        with xr.open_dataset(file, engine="scipy") as dataset:
            for name, variable in dataset.variables.items():
                arrays[f"{file.name}/{name}"] = variable.values
    return arrays


def is_same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Bit for bit; a NaN equals a NaN of the same bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind in "fc":
        return one.tobytes() == other.tobytes()
    return bool(np.array_equal(one, other))


if __name__ == "__main__":
    sys.exit(main())
