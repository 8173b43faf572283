"""The chat handlers for images, by name: each is the path of a projector.

    llm = Llama("model.gguf", chat_handler=Llava15ChatHandler(clip_model_path="mmproj.gguf"))

Here the projector says itself of what kind it is and the template is the model's, so the handlers
differ in name alone. Images are data: addresses; nothing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from insula.compat.llama_cpp import answers
from insula.compat.llama_cpp.answers import Head, Shown
from insula.compat.llama_cpp.completing import pieces
from insula.compat.llama_cpp.errors import theirs
from insula.compat.llama_cpp.sampling import sampling
from insula.errors import ConfigError
from insula.llm import LLM


class MTMDChatHandler:
    """A projector. clip_model_path: its file. verbose: kept as an attribute."""

    def __init__(self, clip_model_path: str | os.PathLike[str], verbose: bool = True) -> None:
        if not os.path.exists(clip_model_path):  # noqa: PTH110 - any path that the system takes
            raise ConfigError(f"Clip model path does not exist: {os.fspath(clip_model_path)}")
        self.clip_model_path = os.fspath(clip_model_path)
        self.verbose = verbose


class Llava15ChatHandler(MTMDChatHandler):
    """LLaVA 1.5."""


class Llava16ChatHandler(MTMDChatHandler):
    """LLaVA 1.6."""


class MoondreamChatHandler(MTMDChatHandler):
    """Moondream."""


class NanoLlavaChatHandler(MTMDChatHandler):
    """nanoLLaVA."""


class Llama3VisionAlphaChatHandler(MTMDChatHandler):
    """Llama 3 Vision Alpha."""


class MiniCPMv26ChatHandler(MTMDChatHandler):
    """MiniCPM-V 2.6."""


class Qwen25VLChatHandler(MTMDChatHandler):
    """Qwen 2.5 VL."""


def seen(
    llm: LLM,
    messages: Any,
    options: Mapping[str, Any],
    *,
    head: Head,
    last_n: int,
    seed: int | None,
    shown: Shown,
) -> Any:
    """The answer to a conversation with images or sound, as `create_chat_completion` gives it.

    options: its arguments. Raises ConfigError, NotHereError.
    """
    taken = (
        *("top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty"),
        *("presence_penalty", "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta"),
        "logit_bias",
    )
    stop, most = options["stop"], options["max_tokens"]
    scored = bool(options["logprobs"])
    params = sampling(
        temp=options["temperature"],
        **{name: options[name] for name in taken},
        last_n=last_n,
        max_tokens=None if most is None or most <= 0 else most,
        stop=[stop] if isinstance(stop, str) else stop or [],
        logprobs=(options["top_logprobs"] or 0) if scored else None,
        seed=seed,
    )
    with theirs():
        stream = llm.chat_stream(messages, params)
    if options["stream"]:
        return answers.chat_chunks(
            answers.completion_chunks(head, pieces(stream), offset=0, shown=shown, scored=scored)
        )
    said = list(pieces(stream))
    assert stream.completion is not None
    whole = answers.completion(
        head,
        said,
        n_prompt=stream.completion.report.prompt_tokens,
        echo="",
        logprobs=(lambda entries: answers.columns(entries, offset=0, shown=shown))
        if scored
        else None,
    )
    return answers.chat(whole)
