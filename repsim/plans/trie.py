"""Plans joined where they begin alike, so that what they share is computed once."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from repsim.plans.plan import Plan, Step


@dataclass(frozen=True)
class PlanTrie:
    """Plans joined where they begin alike; a node is "these steps, in this order".

    Nodes are numbered in order of first appearance, so extending a trie keeps every number.

    parents: `[node]`, each node's parent; the root is node 0 and has parent -1.
    steps: `[node]`, the step that leads to the node; None for the root.
    paths: `[plan][state]`, each plan's nodes in order, the root first.

    Example:
        >>> trie = PlanTrie.build([Plan.from_steps([0, 1, 2]), Plan.from_steps([0, 2])])
        >>> trie.parents, trie.paths
        ((-1, 0, 1, 2, 1), ((0, 1, 2, 3), (0, 1, 4)))
    """

    parents: tuple[int, ...]
    steps: tuple[Step | None, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def build(cls, plans: Iterable[Plan]) -> PlanTrie:
        """The trie of these plans."""
        return cls((-1,), (None,), ()).extend(plans)

    def extend(self, plans: Iterable[Plan]) -> PlanTrie:
        """This trie with more plans; earlier nodes and plans keep their numbers."""
        index = {pair: node for node, pair in enumerate(zip(self.parents, self.steps, strict=True))}
        paths = list(self.paths)
        for plan in plans:
            path = [0]
            for step in plan.steps:
                path.append(index.setdefault((path[-1], step), len(index)))
            paths.append(tuple(path))
        parents, steps = zip(*index, strict=True)
        return PlanTrie(parents, steps, tuple(paths))

    def __len__(self) -> int:
        return len(self.parents)

    @functools.cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """`[node]`, each node's children in the order of their numbers."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    @property
    def ends(self) -> tuple[int, ...]:
        """`[plan]`, the node where each plan ends."""
        return tuple(path[-1] for path in self.paths)

    @property
    def depth(self) -> int:
        """The number of steps of the longest plan; 0 without plans."""
        return max((len(path) - 1 for path in self.paths), default=0)

    @property
    def applications(self) -> int:
        """How many layer applications it takes to compute every node once."""
        return sum(len(step) for step in self.steps if step is not None)

    def with_ancestors(self, nodes: Iterable[int]) -> frozenset[int]:
        """These nodes, the root and everything between."""
        reached = {0}
        for node in nodes:
            while node not in reached:
                reached.add(node)
                node = self.parents[node]
        return frozenset(reached)

    def depth_first(self) -> Iterator[int]:
        """Every node once, the root first; a node's descendants directly follow it."""
        waiting = [0]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(self.children[node]))
