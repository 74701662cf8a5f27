"""Plans for tests: an example of every family, and any plan of a model with `LAYERS` layers."""

from itertools import chain

from hypothesis import strategies as st

from repsim.plans import FAMILIES, JOIN_KINDS, SUBLAYERS, Application, Plan, Step

LAYERS = 12

# Texts for models of six layers or more.
EXAMPLES = tuple(text for family in FAMILIES.values() for text in family.examples)


def count_through(first: int, last: int) -> list[Step]:
    """The steps of a range, forwards or backwards."""
    way = 1 if last >= first else -1
    return [Step((Application(layer),)) for layer in range(first, last + way, way)]


# Lone steps, ranges either way, repeats, steps of several members joined in every way, sublayers.
layer_numbers = st.integers(0, LAYERS - 1)
members = st.builds(Application, layer_numbers, st.sampled_from(["", "", *SUBLAYERS]))
lone_steps = st.builds(lambda member: Step((member,)), members)
joined_steps = st.builds(
    lambda several, join: Step(tuple(several), join),
    st.sets(members, min_size=1, max_size=5),
    st.sampled_from(list(JOIN_KINDS)),
)
steps = st.one_of(lone_steps, joined_steps)
pieces = st.one_of(
    steps.map(lambda step: [step]),
    st.builds(lambda step, times: [step] * times, steps, st.integers(2, 4)),
    st.builds(count_through, layer_numbers, layer_numbers),
)
plans = st.lists(pieces, min_size=1, max_size=6).map(lambda parts: Plan.from_steps(chain(*parts)))
few_plans = st.lists(plans, max_size=6)
