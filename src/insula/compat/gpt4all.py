"""gpt4all's Python interface over Insula: change the import and the model's name.

    from insula.compat.gpt4all import GPT4All
    model = GPT4All("smollm2:135m")

Signatures, defaults and behaviour follow gpt4all 2.8.2 (the contract test compares them); the
sampler order is that package's too. Different on purpose:
- A model's own chat template is used where no template is given; 2.8.2 took Alpaca's for every
  file that its list does not know. `chat_session` also takes system_message and chat_template
  (Jinja), as later versions do.
- A prompt that does not fit is a ContextOverflowError with both numbers. 2.8.2 returned the
  words "ERROR: The prompt size exceeds …" as if the model had said them, and moved the window
  silently when an answer reached its end; here the answer ends.
- The network is asked only for a file that is not here.
- A GPU is an UnsupportedError; `ngl`, its layer count, means nothing on a CPU, as in 2.8.2.
- Results do not depend on `n_batch`; it is checked and has no other effect.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from insula.compat import gpt4all_files as files
from insula.compat.gpt4all_embed import CancellationError, Embed4All, EmbedResult
from insula.compat.gpt4all_files import ConfigType
from insula.compat.gpt4all_prompts import (
    JinjaTranscript,
    PlainTranscript,
    PromptTemplate,
    is_jinja,
)
from insula.engine.sampling import validate
from insula.errors import ConfigError, UnsupportedError
from insula.types import SamplingParams

if TYPE_CHECKING:
    from typing import Self

    from insula.llm import LLM

__all__ = ["CancellationError", "Embed4All", "EmbedResult", "GPT4All"]

MessageType = dict[str, str]
ResponseCallbackType = Callable[[int, str], bool]

#: gpt4all's order; its typical-p does not exist.
SAMPLERS = ("penalties", "top_k", "top_p", "min_p", "temperature")
CPU_DEVICES = (None, "cpu")


def empty_response_callback(token_id: int, response: str) -> bool:
    """The default callback: go on."""
    return True


class GPT4All:
    """A model to generate text with, and to chat with."""

    def __init__(
        self,
        model_name: str,
        *,
        model_path: str | os.PathLike[str] | None = None,
        model_type: str | None = None,
        allow_download: bool = True,
        n_threads: int | None = None,
        device: str | None = None,
        n_ctx: int = 2048,
        ngl: int = 100,
        verbose: bool = False,
    ) -> None:
        """Load a model, fetching it first if that is allowed and necessary.

        model_name: a file in model_path (".gguf" may be left out), a name of gpt4all's list, or
            one of Insula's: smollm2:135m, hf.co/owner/repo:quant, a name in its store, a path.
        model_path: the folder that has the file or is to have it. None: ~/.cache/gpt4all, and
            for Insula's names its own store.
        model_type: kept as an attribute, without effect.
        allow_download: whether the network may be asked for a file that is not here.
        n_threads: CPU threads; None chooses.
        device: None or "cpu". Anything else is an UnsupportedError.
        n_ctx: tokens of prompt and answer together.
        ngl: layers on a GPU; without effect on a CPU.
        verbose: say on stderr which file is used.

        Raises ModelFileNotFound (a FileNotFoundError), ConfigError, UnsupportedError,
        FormatError and what a download raises.
        """
        if device not in CPU_DEVICES:
            raise UnsupportedError(
                f"device: found {device!r}; Insula's native backend runs on the CPU (None or "
                "'cpu')",
                backend="native",
            )
        self.model_type = model_type
        self.config: ConfigType = self.retrieve_model(
            model_name, model_path=model_path, allow_download=allow_download, verbose=verbose
        )
        from insula.llm import LLM

        self._llm: LLM | None = LLM(self.config["path"], n_ctx=n_ctx, n_threads=n_threads)
        self._history: list[MessageType] | None = None
        self._transcript: PlainTranscript | JinjaTranscript | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model. Twice is harmless."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    @property
    def backend(self) -> Literal["cpu", "kompute", "cuda", "metal"]:
        """The kind of device that runs the model: "cpu"."""
        return "cpu"

    @property
    def device(self) -> str | None:
        """The GPU's name: None, as there is none."""
        return None

    @property
    def current_chat_session(self) -> list[MessageType] | None:
        """The messages so far, the system's first; None outside a session. A copy."""
        return None if self._history is None else [dict(m) for m in self._history]

    @staticmethod
    def list_models() -> list[ConfigType]:
        """gpt4all's list of models, from gpt4all.io. Raises DownloadError."""
        return files.list_models()

    @classmethod
    def retrieve_model(
        cls,
        model_name: str,
        model_path: str | os.PathLike[str] | None = None,
        allow_download: bool = True,
        verbose: bool = False,
    ) -> ConfigType:
        """Find a model's file or fetch it; what is known of it, with its "path".

        Raises ModelFileNotFound and what a download raises.
        """
        return files.retrieve_model(
            model_name, model_path, allow_download=allow_download, verbose=verbose
        )

    @staticmethod
    def download_model(
        model_filename: str,
        model_path: str | os.PathLike[str],
        verbose: bool = True,
        url: str | None = None,
        expected_size: int | None = None,
        expected_md5: str | None = None,
    ) -> str | os.PathLike[str]:
        """Fetch a file of gpt4all.io's (or of `url`) into a folder, and check it.

        An interrupted download goes on from where it was. Raises DownloadError (ChecksumError,
        OfflineError), ModelFileNotFound, ResourceError.
        """
        return files.download_model(
            model_filename,
            model_path,
            verbose=verbose,
            url=url,
            expected_size=expected_size,
            expected_md5=expected_md5,
        )

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = ...,
        temp: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        repeat_penalty: float = ...,
        repeat_last_n: int = ...,
        n_batch: int = ...,
        n_predict: int | None = ...,
        streaming: Literal[False] = ...,
        callback: ResponseCallbackType = ...,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = ...,
        temp: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        repeat_penalty: float = ...,
        repeat_last_n: int = ...,
        n_batch: int = ...,
        n_predict: int | None = ...,
        streaming: Literal[True],
        callback: ResponseCallbackType = ...,
    ) -> Iterable[str]: ...
    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = ...,
        temp: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        repeat_penalty: float = ...,
        repeat_last_n: int = ...,
        n_batch: int = ...,
        n_predict: int | None = ...,
        streaming: bool,
        callback: ResponseCallbackType = ...,
    ) -> Any: ...

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 200,
        temp: float = 0.7,
        top_k: int = 40,
        top_p: float = 0.4,
        min_p: float = 0.0,
        repeat_penalty: float = 1.18,
        repeat_last_n: int = 64,
        n_batch: int = 8,
        n_predict: int | None = None,
        streaming: bool = False,
        callback: ResponseCallbackType = empty_response_callback,
    ) -> Any:
        """Go on from a text, or answer it within a chat session.

        max_tokens: most tokens of the answer; n_predict is its older name and wins.
        temp: 0 is greedy; higher is bolder. top_k, top_p, min_p narrow the choice.
        repeat_penalty: above 1 discourages the last repeat_last_n tokens.
        n_batch: at least 1; results do not depend on it.
        streaming: return an iterator over pieces of text instead of the text.
        callback: called with each token's id and text; returning False ends the answer with
            that token.

        Raises ConfigError (an option's value), ContextOverflowError, EngineError.
        """
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt: found {type(prompt).__name__}; allowed is a str")
        if type(n_batch) is not int or n_batch < 1:
            raise ConfigError(f"n_batch: found {n_batch!r}; allowed is 1 or more")
        if not callable(callback):
            raise ConfigError(
                f"callback: found {callback!r}; allowed is a function of a token's id and text, or "
                "leave it out"
            )
        params = SamplingParams(
            max_tokens=max_tokens if n_predict is None else n_predict,
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            repeat_last_n=repeat_last_n,
            samplers=SAMPLERS,
        )
        validate(params)
        pieces = self._answer(self._ask(prompt), params, callback)
        if streaming:
            return (text for text, shown in pieces if shown)
        return "".join([text for text, _ in pieces])

    @contextmanager
    def chat_session(
        self,
        system_prompt: str | None = None,
        prompt_template: str | None = None,
        *,
        system_message: str | Literal[False] | None = None,
        chat_template: str | None = None,
    ) -> Iterator[Self]:
        """Keep a conversation: inside, `generate` answers with the earlier turns in mind.

        prompt_template: one turn as text, with {0} for the user's and {1} for the answer; then
            system_prompt is text too and comes first as it is. In Jinja it is a chat_template.
        chat_template: the whole conversation in Jinja. None: the model's own; if it has none,
            Alpaca's prompt template, with a DeprecationWarning as in gpt4all.
        system_message: what the system says, in the template's form; False says nothing.
            Without a prompt_template, system_prompt means the same.

        Raises ConfigError (a ValueError) where old and new arguments contradict each other.
        """
        llm = self._open()
        if prompt_template is not None and is_jinja(prompt_template):
            if chat_template is not None:
                raise ConfigError("prompt_template and chat_template are both given, in Jinja")
            prompt_template, chat_template = None, prompt_template
        if prompt_template is not None and chat_template is not None:
            raise ConfigError("give prompt_template or chat_template, not both")
        if system_prompt is not None and system_message is not None:
            raise ConfigError("give system_prompt or system_message, not both")
        system = system_prompt if system_message is None else system_message or ""
        if system is None:
            system = str(self.config.get("systemPrompt", ""))
        if prompt_template is None and chat_template is None:
            prompt_template = self._default_template(llm)
        if prompt_template is not None:
            template = PromptTemplate.parse(prompt_template)
            self._transcript = PlainTranscript(llm.tokenizer, template, system)
        else:
            self._transcript = JinjaTranscript(llm.tokenizer, chat_template, system)
        self._history = [{"role": "system", "content": system}]
        try:
            yield self
        finally:
            self._history = None
            self._transcript = None

    @staticmethod
    def list_gpus() -> list[str]:
        """The GPUs that could be used: none."""
        return []

    def _open(self) -> LLM:
        if self._llm is None:
            raise ConfigError("Attempted operation on a closed model; make a new GPT4All")
        return self._llm

    def _default_template(self, llm: LLM) -> str | None:
        """The list's prompt template, None for the model's own in Jinja, else Alpaca's."""
        listed = self.config.get("promptTemplate")
        if listed is not None:
            return str(listed)
        if llm.tokenizer.chat_template is not None:
            return None
        warnings.warn(
            "the model has no chat template of its own, and none was given; taking Alpaca's",
            DeprecationWarning,
            stacklevel=4,  # the caller's `with model.chat_session()`
        )
        return files.DEFAULT_PROMPT_TEMPLATE

    def _ask(self, prompt: str) -> list[int]:
        """The ids to complete; within a session, the turn is in the history from here on."""
        tokenizer = self._open().tokenizer
        if self._history is None or self._transcript is None:
            ids = tokenizer.encode(prompt)
            # An empty text: gpt4all's models go on from the beginning of everything.
            return ids or ([] if tokenizer.bos_id is None else [tokenizer.bos_id])
        ids = self._transcript.ask(prompt)
        self._history += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": ""},
        ]
        return ids

    def _answer(
        self, ids: list[int], params: SamplingParams, callback: ResponseCallbackType
    ) -> Iterator[tuple[str, bool]]:
        """Pieces of text, and whether the callback let them pass.

        In a session the history grows with the pieces, and the turn counts as soon as the
        iteration ends, for whatever reason; a turn that failed before its first piece is gone.
        """
        history, transcript = self._history, self._transcript
        token_ids: list[int] = []
        last, begun = -1, False
        try:
            for chunk in self._open().stream(ids, params, overflow="stop"):
                token_ids += chunk.token_ids
                last = chunk.token_ids[-1] if chunk.token_ids else last
                if not chunk.text:
                    continue  # inside a character, or nothing to show
                begun = True
                if history is not None:
                    history[-1]["content"] += chunk.text
                if not callback(last, chunk.text):
                    yield chunk.text, False
                    return
                yield chunk.text, True
            begun = True
        finally:
            if history is not None and transcript is not None:
                if begun:
                    question, answer = history[-2]["content"], history[-1]["content"]
                    transcript.answered(question, ids, answer, token_ids)
                else:
                    del history[-2:]
