"""What of `Llama` is about tokens: its vocabulary, and the sequence that a program moves by hand.

Owns the loaded model, the seed and the `TokenState`. `Llama` adds loading, completions and chats.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from insula.compat.llama_cpp import constants as c
from insula.compat.llama_cpp.completing import begin
from insula.compat.llama_cpp.errors import in_their_types, theirs
from insula.compat.llama_cpp.llama_cache import BaseLlamaCache
from insula.compat.llama_cpp.llama_grammar import LlamaGrammar, refuse
from insula.compat.llama_cpp.llama_tokenizer import LlamaTokenizer
from insula.compat.llama_cpp.sampling import (
    LogitsProcessorList,
    StoppingCriteriaList,
    note,
    sampling,
)
from insula.compat.llama_cpp.steps import TokenState
from insula.errors import ConfigError

if TYPE_CHECKING:
    from insula.llm import LLM


class LlamaState:
    """What `save_state` gives: ids and logits. Keys and values stay in the engine's cache or are
    computed again, so there are no bytes of them (`llama_state` is empty)."""

    def __init__(
        self,
        input_ids: NDArray[np.int32],
        scores: NDArray[np.float32],
        n_tokens: int,
        llama_state: bytes,
        llama_state_size: int,
        seed: int,
    ) -> None:
        self.input_ids = input_ids
        self.scores = scores
        self.n_tokens = n_tokens
        self.llama_state = llama_state
        self.llama_state_size = llama_state_size
        self.seed = seed


class SteppedModel:
    """Made by `Llama` alone."""

    _llm: LLM | None
    _state: TokenState
    _seed: int
    last_n_tokens_size: int
    cache: BaseLlamaCache | None

    # --- tokens ------------------------------------------------------------------------------

    @in_their_types
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """The ids of UTF-8 text. special: texts of control tokens become those tokens."""
        return self.tokenizer().tokenize(text, add_bos, special)

    @in_their_types
    def detokenize(
        self,
        tokens: list[int],
        prev_tokens: list[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """The bytes of ids; control tokens show theirs only if `special`."""
        return self.tokenizer().detokenize(tokens, prev_tokens, special)

    def tokenizer(self) -> LlamaTokenizer:
        """The model's vocabulary."""
        return LlamaTokenizer(self._open().tokenizer)

    def token_bos(self) -> int:
        """The id that begins a text; -1 where there is none."""
        return _or_minus_one(self._open().tokenizer.bos_id)

    def token_eos(self) -> int:
        """The id that ends a text; -1 where there is none."""
        return _or_minus_one(self._open().tokenizer.eos_id)

    def token_nl(self) -> int:
        """The id of a line feed; -1 where it is not one token."""
        ids = self._open().tokenizer.encode("\n", add_special=False)
        return ids[-1] if ids else -1

    def n_ctx(self) -> int:
        """Tokens of context."""
        return self._open().n_ctx

    def n_embd(self) -> int:
        """Width of the model."""
        return self._open().model_info.n_embd

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._open().model_info.n_vocab

    def pooling_type(self) -> int:
        """How vectors of tokens become one of a text: not specified."""
        return c.LLAMA_POOLING_TYPE_UNSPECIFIED

    # --- step by step ------------------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        """Tokens evaluated. Setting it forgets those after."""
        return len(self._state.ids)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        self._state.keep(n)

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """The ids evaluated, int32 [n_ctx], zeros behind n_tokens. A copy."""
        ids = np.zeros(self._state.n_ctx, np.int32)
        ids[: self.n_tokens] = self._state.ids
        return ids

    @property
    def scores(self) -> NDArray[np.float32]:
        """With logits_all: float32 [n_ctx, n_vocab], row t the logits after token t. Else zeros."""
        return self._state.scores

    @property
    def eval_tokens(self) -> deque[int]:
        """The ids evaluated."""
        return deque(self._state.ids, maxlen=self._state.n_ctx)

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The rows of `scores` that belong to tokens; without logits_all the last one alone."""
        rows: list[list[float]]
        if self._state.all_logits:
            rows = self.scores[: self.n_tokens].tolist()
        else:
            rows = [self._state.last_logits().tolist()] if self.n_tokens else []
        return deque(rows)

    def reset(self) -> None:
        """Forget what was evaluated."""
        self._state.keep(0)

    @in_their_types
    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate more tokens. Raises ValueError where the context is full."""
        self._state.eval(tokens)

    @in_their_types
    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """Choose the token after those evaluated, or after the one at `idx` (logits_all)."""
        if grammar is not None:
            refuse("grammar")
        params = sampling(
            temp=temp,
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
            penalize_nl=penalize_nl,
            seed=own_seed(self._seed),
        )
        processors = None
        if logits_processor is not None:
            processors = LogitsProcessorList(as_list(logits_processor))
        return self._state.sample(params, processors=processors, index=idx).token_id

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens, one after another, without end: stop at `token_eos()` yourself. What is sent
        in is evaluated after the token. reset: begin anew with `tokens`, else go on with them."""
        criteria = None
        if stopping_criteria is not None:
            criteria = StoppingCriteriaList(as_list(stopping_criteria))
        following = list(tokens)
        with theirs():
            if reset:
                begin(self._state, following)
                following = []
            while True:
                self._state.eval(following)
                token = self.sample(
                    top_k=top_k,
                    top_p=top_p,
                    min_p=min_p,
                    typical_p=typical_p,
                    temp=temp,
                    repeat_penalty=repeat_penalty,
                    frequency_penalty=frequency_penalty,
                    presence_penalty=presence_penalty,
                    tfs_z=tfs_z,
                    mirostat_mode=mirostat_mode,
                    mirostat_tau=mirostat_tau,
                    mirostat_eta=mirostat_eta,
                    penalize_nl=penalize_nl,
                    logits_processor=logits_processor,
                    grammar=grammar,
                )
                evaluated = np.array(self._state.ids, np.int32)
                if criteria is not None and criteria(evaluated, self._state.last_logits()):
                    return
                sent = yield token
                following = [token, *(sent or ())]

    def save_state(self) -> LlamaState:
        """The ids and logits, to come back to with `load_state`, here or in another process."""
        rows = self.scores[: self.n_tokens].copy() if self._state.all_logits else self.scores[:0]
        return LlamaState(
            input_ids=self.input_ids,
            scores=rows,
            n_tokens=self.n_tokens,
            llama_state=b"",
            llama_state_size=0,
            seed=self._seed,
        )

    def load_state(self, state: LlamaState) -> None:
        """Come back to it. Raises ConfigError for one of a longer context."""
        if state.n_tokens > self._state.n_ctx:
            raise ConfigError(
                f"the state has {state.n_tokens} tokens and the context holds {self._state.n_ctx}"
            )
        self._state.ids = state.input_ids[: state.n_tokens].tolist()
        self._state.logits = None
        if self._state.all_logits:
            if len(state.scores) != state.n_tokens:
                raise ConfigError("the state was saved without logits_all, and has no scores")
            self._state.scores[: state.n_tokens] = state.scores
        self._seed = state.seed

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Kept as an attribute. The engine caches prefixes always, in its own memory."""
        if cache is not None:
            note(
                f"{type(cache).__name__} stays empty: the engine caches prefixes always; its size "
                "is INSULA_KV_MEMORY, and INSULA_CACHE_DIR keeps it on disk"
            )
        self.cache = cache

    def set_seed(self, seed: int) -> None:
        """The seed of what is sampled next; -1 draws one."""
        self._seed = seed

    @staticmethod
    def logits_to_logprobs(
        logits: NDArray[np.float32] | list[Any], axis: int = -1
    ) -> NDArray[np.float32]:
        """Natural-log probabilities: x - log(sum(exp(x))), along an axis."""
        x = np.asarray(logits, np.float32)
        shifted = x - np.max(x, axis=axis, keepdims=True)
        total = np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
        logprobs: NDArray[np.float32] = shifted - total
        return logprobs

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens two sequences begin with in common."""
        n = 0
        for x, y in zip(a, b, strict=False):
            if x != y:
                break
            n += 1
        return n

    def close(self) -> None:
        """Let go of the model. Twice is harmless."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_llm", None) is not None:
            self.close()

    def _open(self) -> LLM:
        if self._llm is None:
            raise ConfigError("the model is closed; make a new Llama")
        return self._llm


def own_seed(seed: int | None) -> int | None:
    """The seed, or None to draw one."""
    return None if seed in (None, -1, c.LLAMA_DEFAULT_SEED) else int(seed or 0) & 0xFFFFFFFF


def _or_minus_one(token_id: int | None) -> int:
    return -1 if token_id is None else token_id


def as_list(functions: Any) -> list[Any]:
    """Functions as a list; a single one may stand alone."""
    return list(functions) if isinstance(functions, Sequence) else [functions]
