"""A real, tiny, exact model for the engine's tests, and a byte vocabulary for it.

Its next-token logits are a pseudo-random function of the whole prefix, read back from the pages
through the table, so that one wrong, stale or overwritten position changes what follows.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import os
import zlib

import numpy as np

BOS, EOS, EOT = 256, 257, 258
N_VOCAB = 260


class PrefixRunner:
    """The runner's face over token ids kept in pages. Rows depend on their prefix alone."""

    engine = "prefix"
    isa = "none"
    threads = 1

    def __init__(self, *, n_pages: int, page_size: int = 4, n_vocab: int = N_VOCAB) -> None:
        self.n_pages, self.page_size, self.n_vocab = n_pages, page_size, n_vocab
        self.tokens = np.full((n_pages, page_size), -1, dtype=np.int64)
        self.positions = np.full((n_pages, page_size), -1, dtype=np.int64)
        self.steps: list[int] = []
        self.rows_run = 0
        self.closed = False
        self.fail_next: BaseException | None = None

    def step(self, tokens, positions, rows, tables, logit_rows):
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        for array in (tokens, positions, rows, logit_rows, *tables):
            assert array.dtype == np.int32
        self.steps.append(len(tokens))
        self.rows_run += len(tokens)
        written = set()
        wanted = {int(r): i for i, r in enumerate(logit_rows)}
        logits = np.empty((len(logit_rows), self.n_vocab), dtype=np.float32)
        for t, (token, p, row) in enumerate(zip(tokens, positions, rows, strict=True)):
            page, slot = tables[row][p // self.page_size], p % self.page_size
            assert (page, slot) not in written, "two sequences write one place"
            written.add((page, slot))
            self.tokens[page, slot], self.positions[page, slot] = token, p
            if t in wanted:
                logits[wanted[t]] = logits_after(self._read(tables[row], p + 1), self.n_vocab)
        return logits

    def _read(self, table, n):
        p = np.arange(n)
        pages, slots = table[p // self.page_size], p % self.page_size
        assert np.array_equal(self.positions[pages, slots], p), "a page holds another's positions"
        return self.tokens[pages, slots]

    def copy_page(self, src: int, dst: int) -> None:
        self.tokens[dst] = self.tokens[src]
        self.positions[dst] = self.positions[src]

    @property
    def page_bytes(self) -> int:
        return 16 * self.page_size

    def save_page(self, page: int, tokens: int, out) -> int:
        both = np.concatenate([self.tokens[page], self.positions[page]])
        both.reshape(2, -1)[:, tokens:] = 0
        out[:] = both.view(np.uint8)
        return zlib.crc32(out)

    def load_pages(self, pages, files, offset):
        sums: list[int | None] = []
        for page, file in zip(pages, files, strict=True):
            raw = os.pread(file, self.page_bytes, offset)
            sums.append(zlib.crc32(raw) if len(raw) == self.page_bytes else None)
            raw = raw.ljust(self.page_bytes, b"\xaa")
            self.tokens[page], self.positions[page] = np.frombuffer(raw, np.int64).reshape(2, -1)
        return sums

    def close(self) -> None:
        self.closed = True


def logits_after(ids, n_vocab: int = N_VOCAB) -> np.ndarray:
    """float32 [n_vocab], a function of the prefix."""
    return _logits(np.asarray(ids, dtype="<i8").tobytes(), n_vocab)


@functools.lru_cache(maxsize=20_000)
def _logits(prefix: bytes, n_vocab: int) -> np.ndarray:
    digest = hashlib.blake2b(prefix, digest_size=8).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    logits = random.standard_normal(n_vocab, dtype=np.float32) * 3
    logits.flags.writeable = False
    return logits


class ScriptRunner(PrefixRunner):
    """Says `script` after any prompt of `n_prompt` tokens, then the end token."""

    def __init__(self, script: bytes | list[int], *, n_prompt: int, n_pages: int = 64) -> None:
        super().__init__(n_pages=n_pages)
        self.script, self.n_prompt = [*script, EOS], n_prompt

    def step(self, tokens, positions, rows, tables, logit_rows):
        logits = super().step(tokens, positions, rows, tables, logit_rows)
        for i, row in enumerate(logit_rows):
            at = int(positions[row]) + 1 - self.n_prompt
            if 0 <= at < len(self.script):
                logits[i, self.script[at]] = 100.0
        return logits


class ByteTokenizer:
    """One token per byte, and three special ones that show no text."""

    vocab_size = N_VOCAB
    bos_id: int | None = BOS
    eos_id: int | None = EOS
    eog_ids = frozenset({EOS, EOT})
    add_bos = True
    chat_template: str | None = None

    def encode(self, text, *, add_special=True, parse_special=False):
        ids = [BOS] if add_special and self.add_bos else []
        return ids + list(text.encode())

    def decode(self, ids, *, skip_special=False):
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id):
        return bytes([token_id]) if token_id < 256 else b""

    def is_special(self, token_id):
        return token_id >= 256

    def detokenizer(self, *, skip_special=False, continues=False):
        return ByteDetokenizer()


class ByteDetokenizer:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id):
        return self._decoder.decode(bytes([token_id]) if token_id < 256 else b"")

    def flush(self):
        return self._decoder.decode(b"", True)
