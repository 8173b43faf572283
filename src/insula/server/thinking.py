"""Whether and how hard a model thinks before it answers, in the words of its own template.

Each family has its own way to ask (reasoning_effort, think, thinking). A template that never looks
at it cannot obey: that is a refusal, except where not to think is all that is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insula.llm import LLM
from insula.server.errors import unsupported

#: How templates are told: to switch it, and how hard.
SWITCH, EFFORT = "enable_thinking", "reasoning_effort"


def template_arguments(
    llm: LLM,
    *,
    effort: str | None = None,
    think: bool | str | None = None,
    name: str = "reasoning_effort",
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the template is given. effort: low, medium, high, none; think: on, off, or an effort.

    name: the parameter by which it was asked. Raises RefusalError where the template cannot obey.
    """
    arguments: dict[str, Any] = dict(given or {})
    if isinstance(think, str):
        effort = think
    elif think is not None:
        return arguments | _switched(llm, think, name)
    if effort in ("none", "minimal"):
        return arguments | _switched(llm, False, name)
    if effort is None:
        return arguments
    source = _source(llm)
    if EFFORT in source:
        return arguments | {EFFORT: effort}
    return arguments | _switched(llm, True, name)


def _switched(llm: LLM, on: bool, name: str) -> dict[str, Any]:
    if SWITCH in _source(llm):
        return {SWITCH: on}
    if on:
        raise unsupported(name, f"{llm.model_info.name} has no way to be told to think")
    return {}


def _source(llm: LLM) -> str:
    return llm.template_source or ""
