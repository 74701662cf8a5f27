"""What `make demo` runs: five commands as a user types them, and what they have found.

Everything goes to the cache, where git does not look.
"""

from __future__ import annotations

import shlex
import sys
import time
from itertools import groupby

import xarray as xr
from rich.console import Console
from rich.table import Table

import repsim
from repsim.cache import cache_folder
from repsim.cli.main import main

CAPTURE = cache_folder() / "captures" / "smollm2-135m-builtin-baseline.zarr"
SCORES = cache_folder() / "scores" / "smollm2-135m-offline-fig2.zarr"
FIGURES = cache_folder() / "figures"
# What a stage does, about how long it takes on two cores, its command.
STAGES = (
    ("Captures every hidden state of SmolLM2-135M over 96 passages", "a minute", "capture"),
    (
        "Compares every two states by their cosine",
        "10 seconds",
        f"analyze cosine {CAPTURE} --figures {FIGURES}",
    ),
    (
        "Looks for groups of layers that are alike",
        "10 seconds",
        f"analyze clusters {CAPTURE} --figures {FIGURES}",
    ),
    (
        "Scores 60 plans on four small tasks: each layer dropped, each two neighbours switched",
        "two minutes",
        f"evaluate --plan fig2 --tasks offline --limit 20 --out {SCORES}",
    ),
    (
        "Compares every plan with the baseline",
        "10 seconds",
        f"analyze degradation {SCORES} --figure 2 --figures {FIGURES}",
    ),
)
NEXT = (
    "repsim plans show 'looped_parallel:start=10,loops=3'",
    f"repsim analyze similarity {CAPTURE}",
    "repsim evaluate --plan baseline --plan 'short=0-9, 14-29' --tasks offline --limit 40",
)


def run_stages() -> None:
    """Runs the commands one after the other; the first that fails ends the demo."""
    begin = time.monotonic()
    for number, (what, duration, command) in enumerate(STAGES, 1):
        print(f"\n[{number}/{len(STAGES)}] {what} (about {duration}).\n$ repsim {command}")
        sys.stdout.flush()
        start = time.monotonic()
        if status := main(shlex.split(command)):
            sys.exit(status)
        print(f"It took {time.monotonic() - start:.0f} s.")
    print(f"\nAll of it: {time.monotonic() - begin:.0f} s. Figures are in {FIGURES}.")


def findings() -> list[tuple[str, str]]:
    """What was looked at -> what was found, from the numbers that the commands have kept."""
    capture, scores = repsim.open(CAPTURE), repsim.open(SCORES)
    cosine, clusters = (
        xr.load_dataset(FIGURES / f"{analysis}-{CAPTURE.stem}-token.nc")
        for analysis in ("cosine", "clusters")
    )
    layers = [str(layer) for layer in clusters["layer"].values]
    groups = [
        [layers[state] for state in states]
        for _, states in groupby(range(len(layers)), lambda state: int(clusters["group"][state]))
    ]
    neighbours = [float(cosine["cosine"][state, state + 1]) for state in range(len(layers) - 1)]
    half = len(neighbours) // 2

    # Share of right answers, the mean over tasks.
    means = scores.table("acc").groupby("plan_name")["value"].mean()
    drops = means[means.index.str.match(r"drop:layer=\d+$")].sort_values()
    return [
        ("states", f"{capture.hidden().sizes['state']} of each of {capture.complete:,} tokens"),
        (
            "cosine of neighbouring states",
            f"{neighbours[0]:.2f} at the first layer, {neighbours[half]:.2f} in the middle, "
            f"{neighbours[-1]:.2f} at the last",
        ),
        (
            "layers that are alike",
            " | ".join(f"{group[0]}-{group[-1]}" if group[1:] else group[0] for group in groups),
        ),
        ("right answers of the whole model", f"{means['baseline']:.0%}"),
        (
            "without one layer",
            f"{drops.iloc[0]:.0%} ({drops.index[0]}) to {drops.iloc[-1]:.0%} ({drops.index[-1]})",
        ),
    ]


if __name__ == "__main__":
    run_stages()
    table = Table("", "found", title="SmolLM2-135M in five commands", title_justify="left")
    for row in findings():
        table.add_row(*row)
    Console().print(table)
    print("\nTry next:", *NEXT, sep="\n  ")
