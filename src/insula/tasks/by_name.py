"""`pipeline(task, model=...)`: the tasks by transformers' names, with its results' shapes.

    from insula.tasks import pipeline
    with pipeline("sentiment-analysis", model="smollm2:135m") as classify:
        classify("What a lovely evening!")  # [{"label": "POSITIVE", "score": ...}]

Owns the names, the models that run where none is named, and the check that an option is one of the
task's; the work is the functions'.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

from insula.errors import ConfigError
from insula.hub.catalog import DEFAULT_MODEL
from insula.llm import LLM
from insula.tasks import options as generation_options
from insula.tasks.answers import question_answering
from insula.tasks.classification import text_classification
from insula.tasks.features import feature_extraction
from insula.tasks.generation import chat, text_generation
from insula.tasks.loading import opened
from insula.tasks.rewriting import summarization, translation
from insula.tasks.zero_shot import zero_shot_classification

#: For features where no model is named; for everything else the default model.
EMBEDDER = "all-minilm:l6-v2"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What runs it, and on which model where none is named."""

    run: Callable[..., Any]
    model: str = DEFAULT_MODEL


TASKS = MappingProxyType(
    {
        "text-generation": Task(run=text_generation),
        "chat": Task(run=chat),
        "summarization": Task(run=summarization),
        "translation": Task(run=translation),
        "text-classification": Task(run=text_classification),
        "zero-shot-classification": Task(run=zero_shot_classification),
        "question-answering": Task(run=question_answering),
        "feature-extraction": Task(run=feature_extraction, model=EMBEDDER),
    }
)
ALIASES = MappingProxyType({"sentiment-analysis": "text-classification", "conversational": "chat"})


class Pipeline:
    """One task on one model. Call it with what the task's function takes. Thread-safe.

    task: its name. model: the loaded LLM; one that was loaded here ends with `close`.
    """

    def __init__(
        self,
        task: str,
        llm: LLM,
        run: Callable[..., Any],
        *,
        ours: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.task = task
        self.model = llm
        self._ours = ours
        self._options = dict(options)
        self._run = run

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The task's results; options here win over those given to `pipeline`."""
        _check(self._run, options, self.task)
        parameters = list(inspect.signature(self._run).parameters.values())[1:]
        places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(inputs) > len(places):
            raise ConfigError(
                f"{self.task}: found {len(inputs)} inputs; allowed: {', '.join(places)}"
            )
        given = dict(zip(places, inputs, strict=False))
        twice = [name for name in given if name in options]
        if twice:
            raise ConfigError(f"{self.task}: {twice[0]} is there twice, by place and by name")
        everything = {**self._options, **given, **options}
        missing = [p.name for p in parameters if p.default is p.empty and _named(p)]
        missing = [name for name in missing if name not in everything]
        if missing:
            raise ConfigError(f"{self.task}: {', '.join(missing)} is missing")
        return self._run(self.model, **everything)

    def close(self) -> None:
        """Free the model if it was loaded here. Twice is harmless."""
        if self._ours:
            self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Pipeline({self.task!r}, {self.model!r})"


def pipeline(
    task: str,
    model: LLM | str | os.PathLike[str] | None = None,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Pipeline:
    """A task on a model.

    task: one of TASKS or ALIASES, or translation_xx_to_yy with two codes of languages.
    model: a loaded LLM, or a name or path to load; None: the default model, which must have been
        pulled unless model_kwargs={"download": True}.
    model_kwargs: for LLM. options: for every call.
    Raises ConfigError for a task or an option that there is not, and what LLM raises.
    """
    name, languages = _task(task)
    entry = TASKS[name]
    given = {**languages, **options}
    _check(entry.run, given, name)
    llm, ours = opened(entry.model if model is None else model, model_kwargs)
    return Pipeline(name, llm, entry.run, ours=ours, options=given)


def _task(task: Any) -> tuple[str, dict[str, str]]:
    """The task's own name, and what its name says of languages."""
    name = ALIASES.get(task, task) if isinstance(task, str) else ""
    if name in TASKS:
        return name, {}
    languages = re.fullmatch(r"translation_([a-z]{2})_to_([a-z]{2})", name)
    if languages:
        return "translation", {"src_lang": languages[1], "tgt_lang": languages[2]}
    raise ConfigError(
        f"task: found {task!r}; allowed: {', '.join((*TASKS, *ALIASES))}, translation_xx_to_yy"
    )


def _check(run: Callable[..., Any], options: Mapping[str, Any], task: str) -> None:
    parameters = list(inspect.signature(run).parameters.values())[1:]
    allowed = tuple(p.name for p in parameters if _named(p))
    if len(allowed) < len(parameters):  # it hands on **options
        allowed = (*allowed, *generation_options.NAMES, "do_sample")
    generation_options.check_names(options, allowed)


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind is not parameter.VAR_KEYWORD
