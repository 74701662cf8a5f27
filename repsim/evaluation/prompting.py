"""How the questions of all tasks are put, beyond what each task says: lm-eval's options for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval._cli.utils import key_val_to_dict, try_parse_json
from lm_eval.models.utils import normalize_gen_kwargs

from repsim.errors import RepsimError, brief
from repsim.options import TaskOptions


@dataclass(frozen=True)
class Prompting:
    """How questions are put.

    apply_chat_template: in the form of the tokenizer's chat template.
    system_instruction: what stands before everything else; None for nothing.
    fewshot_as_multiturn: solved examples as turns of their own, not as one.
    gen_kwargs: replace a task's settings for writing text.
    """

    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether prompts are as the tasks alone have them."""
        return not self.apply_chat_template and self.system_instruction is None

    def settings(self) -> dict[str, Any]:
        """What prompts depend on, for a digest; empty for plain ones."""
        if self.is_plain:
            return {}
        return {
            "apply_chat_template": self.apply_chat_template,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
        }


PLAIN = Prompting()


def prompting_of(options: TaskOptions) -> Prompting:
    """The options of an evaluation as lm-eval understands them.

    With a chat template, solved examples are turns of their own by default.

    Raises:
        RepsimError: an option needs another one, or settings for writing are none, or sample.
    """
    if not isinstance(options.apply_chat_template, bool):
        raise RepsimError(
            f"apply_chat_template {options.apply_chat_template!r}: True or False; the tokenizer's "
            "own template is taken"
        )
    multiturn = options.fewshot_as_multiturn
    if multiturn and not options.apply_chat_template:
        raise RepsimError(
            "fewshot_as_multiturn: only a chat has turns; add --apply-chat-template, or leave it "
            "out"
        )
    return Prompting(
        options.apply_chat_template,
        options.system_instruction,
        options.apply_chat_template if multiturn is None else multiturn,
        parse_gen_kwargs(options.gen_kwargs),
    )


def parse_gen_kwargs(settings: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings for writing text, parsed as lm-eval's command line parses them.

    Args:
        settings: `max_gen_toks=32,do_sample=false`, a JSON object as text, or a mapping.

    Raises:
        RepsimError: they are none, or sample or search; only greedy writing can be repeated under
            other plans.

    Example:
        >>> parse_gen_kwargs("max_gen_toks=32,do_sample=false,until=['.', ';']")
        {'max_gen_toks': 32, 'do_sample': False, 'until': ['.', ';']}
    """
    if not settings:
        return {}
    try:
        parsed = settings
        if isinstance(parsed, str):
            parsed = try_parse_json(parsed)
        parsed = key_val_to_dict(parsed) if isinstance(parsed, str) else dict(parsed)
        normalize_gen_kwargs(parsed)
    except (TypeError, ValueError) as problem:
        raise RepsimError(
            f"gen_kwargs {settings!r}: not settings ({brief(problem)}); write e.g. "
            "max_gen_toks=32,do_sample=false"
        ) from None
    if is_random(parsed):
        raise RepsimError(
            f"gen_kwargs {settings!r}: samples or searches; only greedy generation can be compared"
        )
    return parsed


def is_random(settings: Mapping[str, Any]) -> bool:
    """Whether text is not simply written by the most likely token each time."""
    samples = settings.get("do_sample") or settings.get("temperature")
    return bool(samples) or settings.get("num_beams", 1) > 1
