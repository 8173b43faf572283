"""Which tokens may come next, so that an answer is what its constraint describes.

Owns the vocabulary as llguidance takes it (made once per model, at the first constraint), the
compiled grammars (a bounded number, the least recently used goes), and a `Matcher` per request.

Invariants: a mask depends on the constraint and on the request's own tokens alone, so a constrained
request keeps the engine's contract: batching, caches, recomputation and guesses change nothing. A
control token is never a way to write its text. A matcher is used by one thread at a time.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from insula.engine import grammars
from insula.engine.request import Tokenizer
from insula.errors import ConstraintError, EngineError, TokenizerError
from insula.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: Compiled grammars that are kept, and the characters of their texts together: one takes some
#: hundred kilobytes, one of a long text up to 400 bytes a character.
MAX_COMPILED, MAX_COMPILED_CHARACTERS = 64, 512 << 10

#: Processor time that following a constraint may take: all requests wait for each other's. JSON
#: takes less than a millisecond a token; a grammar of many meanings takes longer for each one.
SECONDS, SECONDS_PER_TOKEN = 1.0, 0.02

#: Where a vocabulary puts a space before a text's first word, this stands before it: one byte that
#: joins no other.
_BEFORE = "\x02"


class Constraints:
    """Compiles constraints for one model. Safe from any thread."""

    def __init__(self, tokenizer: Tokenizer, *, n_vocab: int) -> None:
        """n_vocab: of the logits; nothing is built yet."""
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[bytes, tuple[LLMatcher, int]] = OrderedDict()

    def __len__(self) -> int:
        """How many compiled grammars are kept."""
        return len(self._compiled)

    @property
    def _n_ids(self) -> int:
        assert self._vocabulary is not None
        return int(self._vocabulary.vocab_size)

    def matcher(self, constraint: Constraint) -> Matcher:
        """A fresh matcher. Raises ConfigError, ConstraintError."""
        grammars.checked(constraint)
        name = f"{constraint.kind}\0{constraint.text}"
        key = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
        with self._lock:
            made, _ = self._compiled.get(key, (None, 0))
            if made is not None:
                self._compiled.move_to_end(key)
        if made is None:
            made = self._compile(constraint)
            with self._lock:
                self._compiled[key] = made, len(constraint.text)
                while len(self._compiled) > MAX_COMPILED or self._is_too_long():
                    self._compiled.popitem(last=False)
        return Matcher(made.deep_copy(), self._n_ids)

    def _is_too_long(self) -> bool:
        return sum(length for _, length in self._compiled.values()) > MAX_COMPILED_CHARACTERS

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        text = grammars.source(constraint, n_vocab=self._n_vocab)
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer, self._n_vocab)
            vocabulary = self._vocabulary
        made = LLMatcher(vocabulary, text, log_level=0, limits=LLParserLimits(**grammars.LIMITS))
        if made.is_error():
            raise grammars.refused(made.get_error())
        first = Matcher(made.deep_copy(), vocabulary.vocab_size)
        if not first.ended and not first.begins():
            raise ConstraintError(
                f"no answer of this model can be what the {constraint.kind} constraint describes: "
                "it allows nothing, or the vocabulary lacks its characters"
            )
        return made


class Matcher:
    """How far one answer has come through its grammar."""

    def __init__(self, native: LLMatcher, n_ids: int) -> None:
        self._native = native
        self._mask = np.zeros((n_ids + 31) // 32, dtype=np.uint32)
        self._bytes = self._mask.nbytes
        self._seconds, self._tokens = 0.0, 0

    @property
    def ended(self) -> bool:
        """The answer is whole, and nothing can follow it."""
        return bool(self._native.is_stopped()) and not self._native.is_error()

    def begins(self) -> bool:
        """Whether any token may come next."""
        self._fill()
        return not self._native.is_error()

    def allowed(self) -> NDArray[np.uint32]:
        """uint32 [ceil(n_vocab / 32)], a bit per token that may come next, the end's among them
        where the answer is whole. Valid until the next call. Raises EngineError."""
        self._fill()
        self._check()
        return self._mask

    def accept(self, token_id: int) -> None:
        """The token was chosen. Raises EngineError."""
        began = time.thread_time()
        self._native.consume_token(token_id)
        self._seconds += time.thread_time() - began
        self._tokens += 1
        self._check()

    def _fill(self) -> None:
        began = time.thread_time()
        self._native.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._bytes)
        self._seconds += time.thread_time() - began

    def _check(self) -> None:
        if self._native.is_error():
            why = " ".join(str(self._native.get_error()).split())[:200]
            if why.startswith("NoExtension"):
                raise EngineError(
                    "the vocabulary has no token with which the constraint could go on; allow "
                    "other characters, or take another model"
                )
            raise EngineError(f"the constraint became too complex to follow: {why}")
        if self._seconds > SECONDS + SECONDS_PER_TOKEN * self._tokens:
            raise EngineError(
                f"the constraint became too complex to follow: {self._tokens} tokens of it took "
                f"{self._seconds:.1f} s of processor time; write it with fewer ways to read the "
                "same text"
            )


def _vocabulary(tokenizer: Tokenizer, n_vocab: int) -> LLTokenizer:
    from llguidance import LLTokenizer

    ends = sorted(i for i in tokenizer.eog_ids if i < n_vocab)
    # Without an end token there is an id beyond the logits for it, which nothing can choose.
    words = _Words(tokenizer, n_vocab)
    return LLTokenizer(words, eos_token=ends or None)  # type: ignore[arg-type]  # duck-typed


class _Words:
    """What llguidance takes for a tokenizer: bytes per id, which of them are no text, and how a
    text that must follow is written."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        n_words = min(tokenizer.vocab_size, n_vocab)
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(i) for i in range(n_words)]
        self.tokens += [b""] * (n_vocab - n_words)  # rows of the last layer that no text has
        control = {i for i in range(n_words) if tokenizer.is_special(i)} | tokenizer.eog_ids
        self.special_token_ids = sorted(i for i in control if i < n_vocab)
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min((i for i in tokenizer.eog_ids if i < n_vocab), default=None)
        self._before, self._mark = "", -1
        if not self("a"):
            self._before = _BEFORE
            at = [i for i in self._ids(_BEFORE) if self.tokens[i] == _BEFORE.encode()]
            self._mark = at[-1] if at else -1

    def __call__(self, text: str) -> list[int]:
        """Ids of a text that must follow; without any it comes token by token, as it can."""
        ids = self._ids(self._before + text)
        if self._before and self._mark in ids:
            ids = ids[ids.index(self._mark) + 1 :]
        if any(i >= len(self.tokens) for i in ids):
            return []
        written = b"".join(self.tokens[i] for i in ids)
        return ids if written == text.encode() else []

    def _ids(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special=False)
        except TokenizerError:
            return []
