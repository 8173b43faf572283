"""`Llama`: llama-cpp-python's class over `insula.LLM`.

Signatures, defaults and the answers' dictionaries follow llama-cpp-python 0.3.36 (the contract
tests compare both). What is different on purpose is in docs/llama-cpp-python.md. Not for use by
several threads at once, like the original.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from insula.chat import media
from insula.compat.llama_cpp import answers, chatting
from insula.compat.llama_cpp import constants as c
from insula.compat.llama_cpp.answers import Head
from insula.compat.llama_cpp.completing import column_maker, stepped, streamed
from insula.compat.llama_cpp.errors import NotHereError, in_their_types, theirs
from insula.compat.llama_cpp.files import described, pretrained
from insula.compat.llama_cpp.llama_cache import BaseLlamaCache
from insula.compat.llama_cpp.llama_core import SteppedModel, as_list, own_seed
from insula.compat.llama_cpp.llama_grammar import LlamaGrammar, constraint_of, refuse
from insula.compat.llama_cpp.llama_types import (
    ChatCompletionFunction,
    ChatCompletionRequestFunctionCall,
    ChatCompletionRequestMessage,
    ChatCompletionRequestResponseFormat,
    ChatCompletionTool,
    ChatCompletionToolChoiceOption,
    CreateChatCompletionResponse,
    CreateChatCompletionStreamResponse,
    CreateCompletionResponse,
    CreateEmbeddingResponse,
)
from insula.compat.llama_cpp.loading import gpu, loading
from insula.compat.llama_cpp.sampling import (
    LogitsProcessorList,
    StoppingCriteriaList,
    note,
    sampling,
)
from insula.compat.llama_cpp.steps import TokenState
from insula.engine.backends import require
from insula.errors import ConfigError, ContextOverflowError

if TYPE_CHECKING:
    from insula.llm import LLM


class Llama(SteppedModel):
    """A loaded model."""

    def __init__(
        self,
        model_path: str,
        *,
        n_gpu_layers: int = 0,
        split_mode: int = c.LLAMA_SPLIT_MODE_LAYER,
        main_gpu: int = 0,
        tensor_split: list[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: dict[str, bool | int | float | str] | None = None,
        seed: int = c.LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = c.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
        pooling_type: int = c.LLAMA_POOLING_TYPE_UNSPECIFIED,
        attention_type: int = c.LLAMA_ATTENTION_TYPE_UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool = False,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: Any | None = None,
        draft_model: Any | None = None,
        tokenizer: Any | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> None:
        """Load a model.

        model_path: a GGUF file, or one of Insula's names. n_gpu_layers: more than 0, or -1 for
        all, takes llama.cpp as the backend if its wheel has a GPU here. seed: -1 and the default
        draw one per completion. n_ctx: 0 takes what the model was trained for. n_batch, n_ubatch:
        checked, without effect on results. last_n_tokens_size: how many last tokens the
        penalties see. logits_all: keep every row of logits in `scores` (slower).
        chat_handler: a function, called in place of the model's template as in llama-cpp-python; or
            one of `llama_chat_format`, for images.
        The others are in `loading`: without effect (a UserWarning, and a line in `notes`), or
        refused.

        Raises ValueError (a model that is not there or will not do, a parameter's value) and
        RuntimeError.
        """
        given = {k: v for k, v in locals().items() if k not in ("self", "kwargs", "__class__")}
        self._llm: LLM | None = None
        plan = loading(given, kwargs)
        on_gpu, gpu_notes = gpu(n_gpu_layers)
        from insula.compat.llama_cpp.llama_chat_format import MTMDChatHandler
        from insula.llm import LLM

        projector: dict[str, Any] = {}
        if isinstance(chat_handler, MTMDChatHandler):
            projector = {"mmproj": chat_handler.clip_model_path}
        with theirs():
            llm = LLM(model_path, **plan.options, **on_gpu, **projector)
        self._llm = llm
        self.model_path = model_path
        self.verbose = verbose
        self.n_batch = min(n_ctx, n_batch) if n_ctx else n_batch
        self.n_threads = llm.model_info.threads
        self.last_n_tokens_size = last_n_tokens_size
        self.cache: BaseLlamaCache | None = None
        self.draft_model = draft_model
        self.metadata = described(llm.model_info.path)
        self.chat_handler = chat_handler
        self._template = chatting.template(chat_format, llm.tokenizer)
        self.chat_format = self._template.shown
        self.notes = (*plan.notes, *gpu_notes, *self._template.notes)
        for line in self.notes:
            note(line)
        self._seed = seed or c.LLAMA_DEFAULT_SEED
        self._embedding = embedding
        self._state = TokenState(
            lambda ids, first: self._open().logits(ids, first=first, use_cache=True),
            n_ctx=llm.n_ctx,
            n_vocab=llm.model_info.n_vocab,
            n_batch=self.n_batch,
            all_logits=logits_all,
        )

    # --- completions -------------------------------------------------------------------------

    def create_completion(
        self,
        prompt: str | list[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | list[str] | None = [],  # noqa: B006 - as the original has it; never changed
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[int, float] | None = None,
    ) -> CreateCompletionResponse | Iterator[CreateCompletionResponse]:
        """Go on from a text or from ids.

        max_tokens: None, 0 or less goes on to the context's end, and so does what is more than
        fits. logprobs: how many alternatives per token; logits_all is not needed. echo: the prompt
        comes first in the text, with its log probabilities if those are wanted.
        stopping_criteria, logits_processor: functions of (ids, logits), called per token.

        Raises ValueError (an option, a prompt that does not fit), RuntimeError.
        """
        if suffix is not None:
            raise NotHereError("suffix: filling in is not here yet; ask with the model's own marks")
        constraint = constraint_of(grammar)
        llm = self._open()
        ids = self._prompt(prompt)
        n_ctx = llm.n_ctx
        if len(ids) >= n_ctx:
            raise ContextOverflowError(
                len(ids) + 1,
                n_ctx,
                f"Requested tokens ({len(ids)}) exceed context window of {n_ctx}",
            )
        room = n_ctx - len(ids)
        most = room if max_tokens is None or max_tokens <= 0 else min(max_tokens, room)
        params = sampling(
            temp=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            last_n=self.last_n_tokens_size,
            logit_bias=logit_bias,
            max_tokens=most,
            stop=[stop] if isinstance(stop, str) else stop or [],
            logprobs=logprobs,
            seed=self._next_seed(seed),
        )
        if stopping_criteria or logits_processor or self._state.all_logits:
            if constraint is not None:
                refuse("grammar")
            pieces = stepped(
                self._state,
                llm.tokenizer,
                ids,
                params,
                most=most,
                processors=None
                if logits_processor is None
                else LogitsProcessorList(as_list(logits_processor)),
                criteria=None
                if stopping_criteria is None
                else StoppingCriteriaList(as_list(stopping_criteria)),
            )
        else:
            pieces = streamed(llm, self._state, ids, params, constraint)
        head = Head(model=self.model_path if model is None else model)
        if stream:
            return answers.completion_chunks(
                head, pieces, offset=len(prompt), shown=self._shown, scored=logprobs is not None
            )
        echoed = ""
        if echo:
            echoed = prompt if isinstance(prompt, str) else "".join(map(self._shown, prompt))
        score = None
        if logprobs is not None:
            score = column_maker(
                llm, ids, logprobs, echo=echo, offset=len(prompt), shown=self._shown
            )
        return answers.completion(head, pieces, n_prompt=len(ids), echo=echoed, logprobs=score)

    def __call__(
        self,
        prompt: str,
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | list[str] | None = [],  # noqa: B006 - as the original has it; never changed
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[int, float] | None = None,
    ) -> CreateCompletionResponse | Iterator[CreateCompletionResponse]:
        """As `create_completion`."""
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        return self.create_completion(**arguments)

    # --- chat --------------------------------------------------------------------------------

    def create_chat_completion(
        self,
        messages: list[ChatCompletionRequestMessage],
        functions: list[ChatCompletionFunction] | None = None,
        function_call: ChatCompletionRequestFunctionCall | None = None,
        tools: list[ChatCompletionTool] | None = None,
        tool_choice: ChatCompletionToolChoiceOption | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | list[str] | None = [],  # noqa: B006 - as the original has it; never changed
        seed: int | None = None,
        response_format: ChatCompletionRequestResponseFormat | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> CreateChatCompletionResponse | Iterator[CreateChatCompletionStreamResponse]:
        """Answer a conversation, in the model's own template or the one chosen at the start.

        response_format and grammar are held while the answer is generated. A tool_choice that
        forces a call gives calls that the tools' schemas allow, in the message's tool_calls; else
        the text is what the model wrote, its reasoning and its calls included. logprobs with
        top_logprobs None counts no alternatives.
        """
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if callable(self.chat_handler):
            answer: CreateChatCompletionResponse = self.chat_handler(llama=self, **arguments)
            return answer
        if media.needs(messages):
            seen: CreateChatCompletionResponse = self._seen(messages, arguments)
            return seen
        with theirs():
            turn = self._template.turn(
                messages,
                tools=chatting.offered(tools, functions),
                choice=chatting.chosen(tool_choice, function_call),
                response_format=response_format,
                grammar=grammar,
            )
        for name in ("messages", "functions", "function_call", "tools", "tool_choice"):
            del arguments[name]
        for name in ("response_format", "top_logprobs"):
            del arguments[name]
        arguments["grammar"] = turn.grammar
        arguments["logprobs"] = (top_logprobs or 0) if logprobs else None
        completion: Any = self.create_completion(prompt=turn.ids, **arguments)
        if stream:
            return answers.chat_chunks(completion, turn.calls)
        return answers.chat(completion, turn.calls)

    def _seen(self, messages: Any, arguments: Mapping[str, Any]) -> Any:
        """The answer to a conversation with images or sound."""
        from insula.compat.llama_cpp.llama_chat_format import seen

        chatting.refuse_forced(arguments)
        for name in ("grammar", "logits_processor", "tools", "functions"):
            if arguments[name]:
                raise NotHereError(f"{name}: cannot be had together with images or sound")
        model = arguments["model"]
        return seen(
            self._open(),
            messages,
            arguments,
            head=Head(model=self.model_path if model is None else model),
            last_n=self.last_n_tokens_size,
            seed=self._next_seed(arguments["seed"]),
            shown=self._shown,
        )

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """As `create_chat_completion`, in the openai package's types. ImportError without it."""
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError:
            raise ImportError(
                "create_chat_completion_openai_v1 needs the openai package; pip install openai"
            ) from None
        answer: Any = self.create_chat_completion(*args, **kwargs)
        if kwargs.get("stream", False):
            return (ChatCompletionChunk(**chunk) for chunk in answer)
        return ChatCompletion(**answer)

    # --- embeddings --------------------------------------------------------------------------

    @in_their_types
    def create_embedding(
        self,
        input: str | list[str],  # noqa: A002 - the original's name
        model: str | None = None,
    ) -> CreateEmbeddingResponse:
        """Vectors of texts in OpenAI's form. Raises what `embed` raises."""
        vectors, n_tokens = self.embed(
            input if isinstance(input, list) else [input], return_count=True
        )
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": vector, "index": i}
                for i, vector in enumerate(vectors)
            ],
            "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    @in_their_types
    def embed(
        self,
        input: str | list[str],  # noqa: A002 - the original's name
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """A text's vector, or one for each, pooled (and normalized, where it says so) as the model
        declares; normalize makes it of length 1 in any case. RuntimeError unless made with
        embedding=True; ValueError where model or backend gives no embeddings."""
        if not self._embedding:
            raise RuntimeError(
                "Llama model must be created with embedding=True to call this method"
            )
        llm = self._open()
        require(llm.model_info.engine, "embeddings")
        one = isinstance(input, str)
        found = llm.embed([input] if isinstance(input, str) else input, truncate=truncate)
        vectors = found.vectors
        if normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        result = vectors[0].tolist() if one else vectors.tolist()
        return (result, found.report.tokens) if return_count else result

    # --- the rest ----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: list[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | Literal["auto"] = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Fetch a file of a repository on the hub, unless it is here, and load it.

        filename: its path in the repository, or a pattern such as *Q4_K_M.gguf that fits one.
        local_dir: a folder that gets the file too. cache_dir: without effect, models are kept
        in Insula's store. Raises ValueError (no such file, several), and what a download raises.
        """
        if cache_dir is not None:
            note("cache_dir has no effect: models are kept in Insula's store (INSULA_HOME)")
        if local_dir_use_symlinks != "auto":
            note("local_dir_use_symlinks has no effect: the file is linked where that is possible")
        path = pretrained(repo_id, filename, additional_files, local_dir)
        return cls(model_path=str(path), **kwargs)

    @in_their_types
    def _prompt(self, prompt: str | list[int]) -> list[int]:
        tokenizer = self._open().tokenizer
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt, parse_special=True)
        elif isinstance(prompt, list | tuple):
            ids = [int(i) for i in prompt]
        else:
            raise ConfigError(
                f"prompt: found {type(prompt).__name__}; allowed is a str or a list of ids"
            )
        if not ids and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id]
        if not ids:
            raise ConfigError("the prompt is empty; at least one token is needed")
        return ids

    def _next_seed(self, seed: int | None) -> int | None:
        """A seed of its own for each completion; they follow from the first one."""
        if seed is not None:
            self._seed = seed
        elif own_seed(self._seed) is not None:
            self._seed = random.Random(self._seed).randint(0, 2**32)
        return own_seed(self._seed)

    def _shown(self, token_id: int) -> str:
        return self.detokenize([token_id]).decode(errors="ignore")
