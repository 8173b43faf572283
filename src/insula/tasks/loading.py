"""Which model a task runs on: one that is loaded already, or a name or path to load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from insula.errors import ConfigError
from insula.llm import LLM


def opened(
    model: LLM | str | os.PathLike[str], model_kwargs: Mapping[str, Any] | None = None
) -> tuple[LLM, bool]:
    """The model, and whether it was loaded here and is for the caller to close.

    model_kwargs: for LLM, such as n_ctx or download. Raises what LLM raises.
    """
    if isinstance(model, LLM):
        if model_kwargs:
            raise ConfigError(
                f"model_kwargs: found {', '.join(model_kwargs)}; the model is loaded already, "
                "give them to LLM"
            )
        return model, False
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(
            f"model: found {type(model).__name__}; allowed is an insula.LLM, or a name or path"
        )
    return LLM(model, **(model_kwargs or {})), True
