"""Plans for property tests: any plan of a model with `LAYERS` layers."""

from itertools import chain

from hypothesis import strategies as st

from repsim.plans import Application, Plan

LAYERS = 12


def counted(first: int, last: int) -> list[tuple[Application, ...]]:
    """The steps of a range, forwards or backwards."""
    way = 1 if last >= first else -1
    return [(Application(layer),) for layer in range(first, last + way, way)]


# Lone steps, ranges either way, repeats, parallel steps, halves.
layer_numbers = st.integers(0, LAYERS - 1)
members = st.builds(Application, layer_numbers, st.sampled_from(["", "", "attn", "mlp"]))
steps = st.one_of(
    st.tuples(members), st.sets(members, min_size=1, max_size=5).map(lambda s: tuple(sorted(s)))
)
pieces = st.one_of(
    steps.map(lambda step: [step]),
    st.builds(lambda step, times: [step] * times, steps, st.integers(2, 4)),
    st.builds(counted, layer_numbers, layer_numbers),
)
plans = st.lists(pieces, min_size=1, max_size=6).map(lambda parts: Plan.from_steps(chain(*parts)))
few_plans = st.lists(plans, max_size=6)
