"""Plans as users hand them over: texts, plans by name, and files of them (`@plans.txt`).

A file is read once, where a request comes in; what is computed, and what a store keeps, is what was
in it. A stored name is never taken for a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from repsim.errors import PlanError
from repsim.plans.names import check_name, split_name
from repsim.plans.plan import Plan

PlanRequest: TypeAlias = str | Plan | Mapping[str, str | Plan] | Sequence[str | Plan]

# Of a configuration of mergekit: what has no say in which layers run.
PASSED_OVER = {"merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source"}
SLICE = "write sources: [{model: NAME, layer_range: [FIRST, END]}]"
FORMS = "write a list of plans, a mapping from names to plans, or slices"


def read_plans(request: PlanRequest) -> list[str | Plan]:
    """The plans of a request, each as `resolve` takes it: files are read, and names stand before
    their plans.

    Args:
        request: plans and texts, one or several; `@FILE` stands for the plans in a file, and a
            mapping gives plans their names.
    Raises:
        PlanError: a file cannot be read or holds something else, or a name is none.
    Example:
        >>> read_plans({"late": "0-3, 8-29"})
        ['late=0-3, 8-29']
    """
    if isinstance(request, Mapping):
        return [_with_name(name, plan) for name, plan in request.items()]
    plans: list[str | Plan] = []
    for plan in [request] if isinstance(request, str | Plan) else request:
        plans += _read_if_file(plan) if isinstance(plan, str) else [plan]
    return plans


def _with_name(name: str, plan: str | Plan) -> str:
    if not isinstance(name, str):
        raise PlanError(f"{name!r} is no name for a plan; give a text")
    check_name(name)
    if not isinstance(plan, str | Plan):
        raise PlanError(
            f"{name}: {plan!r} is not a plan; give a text, or Plan.from_steps of a list"
        )
    return f"{name}={plan}"


def _read_if_file(text: str) -> list[str]:
    """The plans in a file, `@FILE` or `NAME=@FILE`; any other text as it is."""
    if text.strip().startswith("@"):
        return _read_file(text.strip()[1:])
    name, equals, rest = text.partition("=")
    if not equals or not rest.strip().startswith("@"):
        return [text]
    name, _ = split_name(text)
    plans = _read_file(rest.strip()[1:])
    if len(plans) > 1 or split_name(plans[0])[0]:
        raise PlanError(f"{text}: the file names its plans, or holds several; write {rest.strip()}")
    return [f"{name}={plans[0]}"]


def _read_file(file: str) -> list[str]:
    """The texts in a file: one per line, or those of a YAML or JSON document."""
    path = Path(file).expanduser()
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise PlanError(f"@{file}: not text in UTF-8; write one plan per line") from None
    except OSError as problem:
        reason = problem.strerror or problem
        raise PlanError(f"@{file}: cannot be read ({reason}); name a file of plans") from None
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        plans = _plans_in(_parse_document(text, path), f"@{file}")
    else:
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        plans = [line for line in lines if line]
    if not plans:
        raise PlanError(f"@{file}: no plan in it; write one per line")
    if nested := next((plan for plan in plans if "@" in plan), None):
        raise PlanError(f"@{file}: {nested!r}: a file holds plans, not names of files")
    return plans


def _parse_document(text: str, path: Path) -> Any:
    """A YAML or JSON document in which every scalar is a text.

    Raises:
        PlanError: it is not such a document, or has a key twice, of which one would be lost.
    """
    import yaml

    is_json = path.suffix.lower() == ".json"
    try:
        if is_json:
            json.loads(text)  # YAML would take more than JSON is
        return _content(yaml.compose(text, yaml.BaseLoader), path, {})
    except PlanError:
        raise
    except (ValueError, yaml.YAMLError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:150]
        kind = "JSON" if is_json else "YAML"
        raise PlanError(f"@{path}: not {kind} ({reason}); mend the file") from None


def _content(node: Any, path: Path, before: dict[int, Any]) -> Any:
    """What a node of YAML holds, as texts, lists and mappings.

    Args:
        node: as PyYAML composes it; None of an empty document.
        path: of the file.
        before: what nodes hold that were met already, so that one of many names is read once.
    """
    if node is None or node.id == "scalar":
        return node and node.value
    if id(node) in before:
        return before[id(node)]
    if node.id == "sequence":
        content: Any = [_content(item, path, before) for item in node.value]
    else:
        content = {}
        for key, value in node.value:
            if key.id != "scalar":
                raise PlanError(f"@{path}: a name that is no text; {FORMS}")
            if key.value in content:
                raise PlanError(f"@{path}: {key.value} is there twice; give each its own name")
            content[key.value] = _content(value, path, before)
    before[id(node)] = content
    return content


def _plans_in(document: Any, where: str) -> list[str]:
    """The plans of a document: a list, a mapping from names to plans, or mergekit's slices."""
    if isinstance(document, Mapping):
        if {"slices", "merge_method"} & document.keys():
            return [_plan_of_slices(document, where)]
        plans = []
        for name, value in document.items():
            if isinstance(value, Mapping):
                value = _plan_of_slices(value, f"{where}: {name}")
            if not isinstance(value, str):
                raise PlanError(f"{where}: {name}: not a plan; {FORMS}")
            plans.append(_with_name(name, value))
        return plans
    if not isinstance(document, list):
        raise PlanError(f"{where}: {FORMS}")
    plans = []
    for number, value in enumerate(document, 1):
        if isinstance(value, Mapping):
            plans += _plans_in(value, where)
        elif isinstance(value, str):
            plans.append(value)
        else:
            raise PlanError(f"{where}: plan {number} is a list; write it as text, e.g. 0-3, 8-29")
    return plans


def _plan_of_slices(document: Mapping[str, Any], where: str) -> str:
    """The plan of mergekit's `slices`, whose layers run one after the other.

    Raises:
        PlanError: it asks for what no plan says: several models, weights that are mixed or scaled.
    """
    method = document.get("merge_method", "passthrough")
    others = sorted(document.keys() - PASSED_OVER - {"slices"})
    slices = document.get("slices")
    if method != "passthrough":
        raise PlanError(
            f"{where}: merge_method {method} mixes weights; a plan runs layers as they are"
        )
    if others:
        raise PlanError(f"{where}: {', '.join(others)}: no plan says that; leave it out")
    if not isinstance(slices, list) or not slices:
        raise PlanError(f"{where}: slices: not a list of slices; {SLICE}")

    pieces: list[str] = []
    models: set[str] = set()
    for number, part in enumerate(slices, 1):
        model, first, last = _read_slice(part, f"{where}: slice {number}")
        models.add(model)
        pieces.append(f"{first}-{last}" if last > first else str(first))
    if len(models) > 1:
        names = " and ".join(sorted(models))
        raise PlanError(f"{where}: layers of {names}; a plan runs the layers of one model")
    return ", ".join(pieces)


def _read_slice(part: Any, where: str) -> tuple[str, int, int]:
    """A slice's model, first and last layer."""
    sources = part.get("sources") if isinstance(part, Mapping) else None
    if not isinstance(sources, list) or not all(isinstance(source, Mapping) for source in sources):
        raise PlanError(f"{where}: no sources; {SLICE}")
    if len(sources) != 1:
        raise PlanError(f"{where}: {len(sources)} sources; a plan runs the layers of one")
    (source,) = sources
    others = sorted((part.keys() - {"sources"}) | (source.keys() - {"model", "layer_range"}))
    if others:
        raise PlanError(f"{where}: {', '.join(others)}: no plan says that; leave it out")
    span = source.get("layer_range")
    if not isinstance(span, list) or len(span) != 2 or not all(map(_is_number, span)):
        raise PlanError(f"{where}: layer_range {span!r}; write [FIRST, END], END left out")
    first, end = map(int, span)
    if end <= first:
        raise PlanError(f"{where}: layer_range [{first}, {end}] holds no layer; END is left out")
    return str(source.get("model", "")), first, end - 1


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10
