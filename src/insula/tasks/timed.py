"""The loop of a first lesson: load a checkpoint, prompt it, ask for so many tokens, take the time.

Each row is computed anew: nothing of the prompt comes from the cache, so that rows compare.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insula.errors import ConfigError
from insula.llm import LLM
from insula.tasks.inputs import listed, sequence, whole
from insula.tasks.loading import opened
from insula.tasks.options import generation
from insula.tasks.prompts import check_generates


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One run. length: most new tokens; new_tokens: those there are, fewer where the model ended.
    Times in seconds: loading the model (0 if it was), and the run from the prompt to its end."""

    model: str
    prompt: str
    length: int
    generated_text: str
    new_tokens: int
    load_seconds: float
    seconds: float


def timed(
    models: LLM | str | os.PathLike[str] | Sequence[LLM | str | os.PathLike[str]],
    prompts: str | Sequence[str],
    lengths: int | Sequence[int] = (20,),
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Timed]:
    """A row for each model, prompt and length, as soon as it is there. A model that is loaded here
    is closed before the next.

    options: as in text generation; the likeliest token is taken unless do_sample=True.
    Raises ConfigError, ContextOverflowError, UnsupportedError, and what loading raises.
    """
    texts, _ = listed(prompts, "prompts")
    many = [lengths] if isinstance(lengths, int) else sequence(lengths, "lengths")
    counts = [whole(length, "lengths") for length in many]
    if "max_new_tokens" in options:
        raise ConfigError("max_new_tokens: is what lengths says; give it there")
    alone = isinstance(models, LLM | str | os.PathLike)
    listed_models = [models] if alone else sequence(models, "models")
    return _rows(listed_models, texts, counts, model_kwargs, options)


def _rows(
    models: list[Any],
    texts: list[str],
    lengths: list[int],
    model_kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Iterator[Timed]:
    for model in models:
        began = time.perf_counter()
        llm, ours = opened(model, model_kwargs)
        load_seconds = time.perf_counter() - began if ours else 0.0
        try:
            check_generates(llm)
            for text in texts:
                for length in lengths:
                    params = generation(llm, {**options, "max_new_tokens": length}, draw=False)
                    began = time.perf_counter()
                    completion = llm.generate(text, params, use_cache=False)
                    yield Timed(
                        model=llm.model_info.name,
                        prompt=text,
                        length=length,
                        generated_text=completion.text,
                        new_tokens=len(completion.token_ids),
                        load_seconds=load_seconds,
                        seconds=time.perf_counter() - began,
                    )
        finally:
            if ours:
                llm.close()
