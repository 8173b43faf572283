"""The front door: a model by name or path, and what one can do with it.

    from insula import LLM
    with LLM("smollm2:135m") as llm:
        print(llm.generate("The sky is", max_tokens=20).text)

Owns the way from what a person writes (text, ids, messages, options by name) to requests, and
nothing of how they run. Everything that differs from what was asked is an error or a line in the
report. Thread-safe, except that a ChatSession belongs to one thread at a time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from insula.config import folder, parse_size, settings
from insula.engine.backends import require
from insula.engine.load import CACHE_DIR_BYTES, Loaded, Options, load
from insula.engine.options import samples, sampling_params
from insula.engine.request import Handle, Request, TextEngine
from insula.engine.stream import Stream
from insula.errors import ConfigError
from insula.given import Adapters, Prompt, named_adapters, plain_ids, prompts
from insula.llm_chat import ChatMethods
from insula.llm_embeddings import EmbeddingMethods
from insula.llm_scoring import ScoringMethods
from insula.types import Activity, Completion, Constraint, ModelInfo, SamplingParams

if TYPE_CHECKING:
    from insula.hub.defaults import ModelDefaults
    from insula.hub.transport import Progress


#: What `generate` and `stream` take beside the options of sampling.
_NAMES = (
    "n",
    "overflow",
    "use_cache",
    "salt",
    "adapter",
    "constraint",
    "response_format",
    "grammar",
)


class LLM(ChatMethods, EmbeddingMethods, ScoringMethods):
    """A loaded model. Close it, or use it as a context manager.

    model_info says what was loaded, which engine runs it and why. tokenizer is the model's.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        engine: str | None = None,
        kv_type: str = "f16",
        kv_memory: int | str | None = None,
        max_running: int = 16,
        speculate: str | os.PathLike[str] = "off",
        draft_tokens: int | None = None,
        weights: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_dir_bytes: int | str | None = None,
        adapters: Adapters | None = None,
        gpu_layers: int | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        defaults: bool = True,
        download: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Load a model.

        model: a path to a GGUF file, a name such as smollm2:135m or hf.co/owner/repo[:quant], a
            folder with a checkpoint in Hugging Face form, or a model on another server that speaks
            OpenAI's routes: remote:http://host:8000/v1#model.
        n_ctx: tokens of context; None chooses as many as kv_memory allows, at most what the
            model was trained for, and says so in every report.
        n_threads: compute threads; None: one per physical core that this process may use.
        engine: auto (default, or INSULA_ENGINE), native, llamacpp, reference, transformers (a
            folder), remote (an address).
        kv_type: how keys and values are kept: f16, int8 (about half the memory, a small loss, see
            docs/performance.md) or f32.
        kv_memory: what the KV cache may take, in bytes or such as "2G"; None: 1 GiB or a
            quarter of the free memory, whichever is less.
        max_running: most requests that advance together; others wait their turn.
        speculate: guess tokens and confirm several in one step, which changes no result: "off",
            "ngram" (what followed the same tokens earlier: copies, edits, code), or a draft
            model's path or name: a smaller one with the same vocabulary. Off by itself where it
            does not pay; the report counts guesses (draft_proposed, draft_accepted).
        draft_tokens: most tokens guessed at once per request; None: 12 with "ngram", 5 with a
            draft model.
        weights: "memory" packs them at each start; "mmap" keeps them packed in a file below
            INSULA_HOME, as large as the model's, and maps that: a start packs nothing, several
            processes share one copy, and the system may drop what it needs the memory for. None:
            INSULA_WEIGHTS or memory.
        cache_dir: a folder in which prefixes are kept for the next run: prompts that begin as
            earlier ones did start at once. None: INSULA_CACHE_DIR; "": none. What is in it can
            be turned back into the prompts: it is the user's alone, and to be treated like them.
        cache_dir_bytes: most bytes in it, or such as "2G"; None: INSULA_CACHE_DIR_BYTES or 4 GiB.
            What was used longest ago goes first.
        adapters: low-rank adapters (LoRA) by name, each a GGUF file or a PEFT folder; a request
            names the one it goes through. A list of paths: each by its file's or folder's name. A
            model of the store with an ADAPTER has that one under its own name, for all requests
            that name none.
        gpu_layers: layers on a GPU, -1 for all, by llama.cpp where its wheel can use one here; with
            engine="auto" and none, the model runs on the CPU and a note says so. None: what the
            backend does by itself.
        mmproj: the file of the model's projector, with which llama.cpp takes images and sound in a
            conversation (`chat.media`).
        api_key: what a remote server is shown; None: INSULA_REMOTE_API_KEY. timeout: seconds for
            which it may say nothing; None: 300.
        defaults: take what a model of the store brings of its own where nothing else is said:
            a Modelfile's PARAMETERs, and in chats its SYSTEM, MESSAGEs and TEMPLATE.
        download: fetch a model that is not here yet; progress is told how far it is.

        Raises ConfigError, NotFoundError, FormatError, UnsupportedError, TokenizerError,
        ResourceError, RemoteError for a server, and DownloadError if it may download.
        """
        from insula.engine.load_elsewhere import is_address, is_folder, load_folder, load_remote
        from insula.hub import advice
        from insula.hub.defaults import ModelDefaults
        from insula.hub.defaults import of as defaults_of
        from insula.hub.resolve import locate

        env = settings()
        if is_address(model) or is_folder(model):
            if engine is None and env.engine != "auto":
                engine = env.engine
            asked = {
                "n_ctx": n_ctx,
                "n_threads": n_threads,
                "kv_type": None if kv_type == "f16" else kv_type,
                "kv_memory": kv_memory,
                "speculate": None if speculate == "off" else speculate,
                "draft_tokens": draft_tokens,
                "weights": weights,
                "cache_dir": cache_dir or None,
                "cache_dir_bytes": cache_dir_bytes,
                "adapters": adapters,
                "gpu_layers": gpu_layers,
                "mmproj": mmproj,
                "api_key": api_key,
                "timeout": timeout,
            }
            elsewhere = load_remote if is_address(model) else load_folder
            made = elsewhere(os.fspath(model), engine or "auto", asked, env, max_running)
            self._take(made, ModelDefaults())
            return
        for name, value in (("api_key", api_key), ("timeout", timeout)):
            if value is not None:
                raise ConfigError(f"{name}: is for a remote server, and the model is not on one")
        if kv_memory is None:
            kv_memory = env.kv_memory
        if cache_dir is None:
            cache_dir = env.cache_dir
        if cache_dir_bytes is None:
            cache_dir_bytes = env.cache_dir_bytes or CACHE_DIR_BYTES
        found = locate(model, allow_download=download, progress=progress)
        own = ModelDefaults() if found.manifest is None else defaults_of(found.manifest)
        if not defaults:
            own = ModelDefaults()
        if n_ctx is None:
            n_ctx = own.meaning.n_ctx
        if n_threads is None and env.threads is None:
            n_threads = own.meaning.n_threads
        draft = None
        if speculate not in ("off", "ngram"):
            draft = locate(speculate, allow_download=download, progress=progress)
            draft.refuse_adapter()
        # Also where defaults are not wanted: the adapter is the model's, not a setting.
        named = named_adapters(adapters)
        if found.adapter is not None and found.name in named:
            raise ConfigError(f"adapters: {found.name!r} is the model's own; give another name")
        loaded = load(
            found.path,
            name=found.path.name if found.origin == "path" else found.name,
            engine=env.engine if engine is None else engine,
            options=Options(
                n_ctx=n_ctx,
                n_threads=env.threads if n_threads is None else n_threads,
                kv_type=kv_type,
                kv_memory=None if kv_memory is None else parse_size(kv_memory, name="kv_memory"),
                available=advice.memory().available,
                max_running=max_running,
                kv_bytes_of=advice.kv_bytes_per_token,
                speculate=os.fspath(speculate)
                if draft is None
                else draft.path.name
                if draft.origin == "path"
                else draft.name,
                draft=None if draft is None else draft.path,
                draft_tokens=draft_tokens,
                weights=env.weights if weights is None else weights,
                home=env.home,
                cache_dir=None if cache_dir in (None, "") else folder(cache_dir, name="cache_dir"),
                cache_dir_bytes=parse_size(cache_dir_bytes, name="cache_dir_bytes"),
                adapters=named if found.adapter is None else {found.name: found.adapter, **named},
                own_adapter=None if found.adapter is None else found.name,
                gpu_layers=gpu_layers,
                mmproj=None if mmproj is None else Path(mmproj).expanduser(),
            ),
        )
        self._take(loaded, own)

    def _take(self, loaded: Loaded, own: ModelDefaults) -> None:
        if own.template is not None:
            from insula.chat.prompt import usable

            template, notes = usable(own.template)
            own = dataclasses.replace(own, template=template, notes=(*own.notes, *notes))
        self._defaults = own
        self.model_info: ModelInfo = dataclasses.replace(
            loaded.info,
            has_chat_template=loaded.info.has_chat_template or own.template is not None,
            notes=(*loaded.info.notes, *own.notes),
        )
        self._engine: TextEngine = loaded.engine
        self._close: Callable[[], None] = loaded.close

    @property
    def defaults(self) -> ModelDefaults:
        """What the model brings of its own, as a Modelfile or a registry set it."""
        return self._defaults

    @property
    def default_params(self) -> SamplingParams:
        """What holds where no `params` are given; options by keyword go on top."""
        return self._defaults.meaning.sampling

    @property
    def activity(self) -> Activity | None:
        """What runs and waits at this moment; None where the backend does not say."""
        return getattr(self._engine, "activity", None)

    @overload
    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        params: SamplingParams | None = None,
        **options: Any,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: Prompt | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        n: int | None = None,
        overflow: Literal["error", "stop"] = "error",
        use_cache: bool = True,
        salt: str = "",
        adapter: str | None = None,
        constraint: Constraint | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Go on from a prompt, or from each of a list of prompts (they run together).

        n: that many completions of each prompt, one after the other in the list that comes back;
            they share the prompt's pages. With a seed they have seed, seed + 1, …

        prompt: text (its control tokens are recognized) or token ids (used as they are).
        params, options: how to choose tokens, see SamplingParams; options by keyword win.
            max_tokens None goes on until the model or the context ends it.
        overflow: what happens if prompt and max_tokens exceed the context: "error", or "stop":
            generate until it is full (finish_reason "length", and a note).
        use_cache, salt: see engine.request.Request.
        adapter: the name of one of the model's adapters to go through; None: its own, or none.
        constraint: what the completion must look like (types.Constraint). response_format: the
            same as OpenAI writes it, {"type": "json_object"} or {"type": "json_schema",
            "json_schema": {"name": ..., "schema": ...}}; grammar: as GBNF or Lark. One of the
            three. A completion that ends with "stop" is whole; one cut off says "length".
        Raises ConfigError (ConstraintError for a schema or grammar), ContextOverflowError,
            TokenizerError, EngineError.
        """
        listed, one = prompts(prompt, self._encoded)
        form = self._form(constraint, response_format, grammar)
        sampling = sampling_params(self._base(params), options, others=_NAMES)
        many = samples(sampling, n)
        handles: list[Handle] = []
        try:
            for ids in listed:
                for each in many:
                    request = self._request(
                        ids, each, form, overflow, use_cache=use_cache, salt=salt, adapter=adapter
                    )
                    handles.append(self._engine.submit(request))
            completions = [handle.result() for handle in handles]
        except BaseException:  # one of them failed, or Ctrl-C: none goes on alone
            for handle in handles:
                handle.cancel()
            raise
        return completions[0] if one and n is None else completions

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        overflow: Literal["error", "stop"] = "error",
        use_cache: bool = True,
        salt: str = "",
        adapter: str | None = None,
        constraint: Constraint | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        prompt_logprobs: int | None = None,
        **options: Any,
    ) -> Stream:
        """As `generate` of one prompt, chunk by chunk. Closing or dropping the stream cancels.

        prompt_logprobs: also score the prompt's own tokens, each with so many alternatives; they
            are the completion's `prompt_logprobs`. Nothing then comes from the prefix cache.
        Errors of the request are raised here, before the first chunk is asked for.
        """
        listed, one = prompts(prompt, self._encoded)
        if not one:
            raise ConfigError("stream takes one prompt; open a stream for each")
        form = self._form(constraint, response_format, grammar)
        names = (*_NAMES, "prompt_logprobs")
        sampling = sampling_params(self._base(params), options, others=names)
        request = self._request(
            listed[0], sampling, form, overflow, use_cache=use_cache, salt=salt, adapter=adapter
        )
        if prompt_logprobs is None:
            return Stream(self._engine.submit(request))
        return self._scored(request, prompt_logprobs)

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Ids of a text, as `generate` makes them. Raises TokenizerError."""
        if not isinstance(text, str):
            raise ConfigError(f"text: found {type(text).__name__}; allowed is a str")
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ids; U+FFFD where they do not make whole characters. Raises TokenizerError."""
        return self.tokenizer.decode(plain_ids(ids), skip_special=skip_special)

    def close(self) -> None:
        """Cancel what runs and free the model. Twice is harmless."""
        self._close()

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
        info = self.model_info
        return f"LLM({info.name!r}, engine={info.engine!r}, n_ctx={info.n_ctx})"

    def _encoded(self, text: str) -> tuple[int, ...] | str:
        if text and "text" in self._engine.takes:
            return text
        ids = tuple(self.tokenize(text))
        if not ids:
            raise ConfigError(
                "the prompt is empty, and this model has no token that begins a text; "
                "give it something to go on from"
            )
        return ids

    def _request(
        self,
        prompt: tuple[int, ...] | str,
        params: SamplingParams,
        form: Constraint | None,
        overflow: str,
        *,
        use_cache: bool,
        salt: str,
        adapter: str | None,
    ) -> Request:
        from insula.chat.prompt import check_overflow, clipped

        check_overflow(overflow, ("error", "stop"))
        self._check_adapter(adapter)
        notes: tuple[str, ...] = ()
        if overflow == "stop":
            if isinstance(prompt, str) or not self.n_ctx:
                require(self._engine.name, "tokenizer")
            params, notes = clipped(params, len(prompt), self.n_ctx)
        return Request(
            ids=() if isinstance(prompt, str) else prompt,
            text=prompt if isinstance(prompt, str) else None,
            params=params,
            constraint=form,
            salt=salt,
            adapter=adapter,
            use_cache=use_cache,
            notes=(*self.model_info.notes, *notes),
        )

    def _scored(self, request: Request, top: Any) -> Stream:
        """The request, and what the model makes of its prompt."""
        from insula.engine.scoring import PromptLogprobs

        require(self._engine.name, "logits")
        if (
            isinstance(top, bool)
            or not isinstance(top, int)
            or not 0 <= top <= self._engine.n_vocab
        ):
            allowed = f"None, or 0 to {self._engine.n_vocab}"
            raise ConfigError(f"prompt_logprobs: found {top!r}; allowed: {allowed}")
        prompt = PromptLogprobs(self.tokenizer, request.ids, top=top)
        return Stream(
            self._engine.submit(dataclasses.replace(request, on_prompt_logits=prompt.take)),
            on_end=lambda whole: dataclasses.replace(whole, prompt_logprobs=prompt.found),
        )
