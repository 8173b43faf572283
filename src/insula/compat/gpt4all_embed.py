"""gpt4all's Embed4All over Insula's embedding engine.

As gpt4all 2.8.2 does it (gpt4all-backend, LLamaModel::embed): a text is cut into chunks that
overlap by 8 tokens, each behind the prefix; the mean of their normalized vectors is normalized
again. Which prefixes a model has, and whether its vectors may be shortened, goes by its name.
"mean" is over chunks; "truncate" keeps the first. An empty text in a list is a placeholder's
vector, on its own it is a ValueError.

Different on purpose: without a name, and without gpt4all's own file, it is Insula's
all-minilm:l6-v2, the same model. What 2.8.2 raises as RuntimeError is a ConfigError as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from insula.compat import gpt4all_files as files
from insula.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from typing import Self

EmbCancelCallbackType = Callable[[list[int], str], bool]
EmbeddingsType = TypeVar("EmbeddingsType", bound="list[Any]")

#: gpt4all's default, and what it is called here.
DEFAULT_FILE = "all-MiniLM-L6-v2.gguf2.f16.gguf"
DEFAULT_NAME = "all-minilm:l6-v2"
MAX_CONTEXT = 2048
OVERLAP = 8
ATLAS_TOKENS = 8192
#: What gpt4all embeds in place of a text of no tokens: the MD5 of "nomic empty".
EMPTY_PLACEHOLDER = "24df574ea1c998de59d5be15e769658e"


class CancellationError(Exception):
    """raised when embedding is canceled"""


class EmbedError(ConfigError, RuntimeError):
    """What gpt4all raises as a RuntimeError."""


class EmbedResult(TypedDict, Generic[EmbeddingsType]):
    """What `Embed4All.embed(…, return_dict=True)` gives."""

    embeddings: EmbeddingsType
    n_prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Known:
    """A family of models. document: the prefix where none is given. shortened: its vectors may be,
    once their mean is taken off."""

    names: tuple[str, ...]
    document: str = ""
    others: tuple[str, ...] = ()
    shortened: bool = False


_NOMIC = ("search_query", "clustering", "classification")
KNOWN = (
    Known(names=tuple(f"all-MiniLM-L{n}-v{v}" for n in (6, 12) for v in (1, 2))),
    Known(
        names=tuple(f"nomic-embed-text-v1{end}" for end in ("", "-ablated", "-unsupervised")),
        document="search_document",
        others=_NOMIC,
    ),
    Known(
        names=("nomic-embed-text-v1.5",),
        document="search_document",
        others=_NOMIC,
        shortened=True,
    ),
    Known(
        names=tuple(
            f"bge-{size}-en{version}"
            for size in ("small", "base", "large")
            for version in ("", "-v1.5")
        ),
        others=("Represent this sentence for searching relevant passages",),
    ),
)


class Embed4All:
    """A model to make vectors of texts with."""

    MIN_DIMENSIONALITY = 64

    def __init__(
        self,
        model_name: str | None = None,
        *,
        n_threads: int | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a model, fetching it first if that is allowed and necessary.

        model_name, n_threads, device and the rest: as for GPT4All.
        Raises what GPT4All raises, and EmbedError for a model that gives no embeddings.
        """
        unknown = set(kwargs) - {
            "model_path", "model_type", "allow_download", "n_ctx", "ngl", "verbose"
        }  # fmt: skip
        if unknown:
            raise TypeError(f"Embed4All got an unexpected argument {min(unknown)!r}")
        if device not in (None, "cpu"):
            raise UnsupportedError(
                f"device: found {device!r}; Insula's native backend runs on the CPU (None or "
                "'cpu')",
                backend="native",
            )
        folder = kwargs.get("model_path")
        if model_name is None:
            theirs = Path(files.DEFAULT_MODEL_DIRECTORY if folder is None else folder, DEFAULT_FILE)
            model_name = DEFAULT_FILE if theirs.is_file() else DEFAULT_NAME
        found = files.retrieve_model(
            model_name,
            folder,
            allow_download=kwargs.get("allow_download", True),
            verbose=kwargs.get("verbose", False),
        )
        from insula.formats.gguf import GGUFFile
        from insula.llm import LLM
        from insula.models.load import summarize

        with GGUFFile.open(found["path"]) as file:
            summary = summarize(file)
        self._name, trained = summary.name, summary.context_length
        asked = kwargs.get("n_ctx", MAX_CONTEXT)
        n_ctx = asked if trained is None else min(asked, trained)
        self._llm: LLM | None = LLM(found["path"], n_ctx=n_ctx, n_threads=n_threads)

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

    def embed(
        self,
        text: str | list[str],
        *,
        prefix: str | None = None,
        dimensionality: int | None = None,
        long_text_mode: str = "mean",
        return_dict: bool = False,
        atlas: bool = False,
        cancel_cb: EmbCancelCallbackType | None = None,
    ) -> Any:
        """A vector (list of floats) of a text, or one of each in a list.

        prefix: the task, where the model knows any; None: that of documents. dimensionality: the
        first so many numbers, for models made for that. long_text_mode: "mean" or "truncate".
        return_dict: {"embeddings": …, "n_prompt_tokens": …}. atlas: as Nomic's Atlas does, texts
        of up to 8192 tokens. cancel_cb(batch sizes, "cpu"): true gives it up (CancellationError).
        Raises ValueError for an empty text or bad arguments, EmbedError (a RuntimeError).
        """
        if dimensionality is not None and dimensionality <= 0:
            raise ConfigError(
                f"Dimensionality must be None or a positive integer, got {dimensionality}"
            )
        if dimensionality is not None and dimensionality < self.MIN_DIMENSIONALITY:
            warnings.warn(
                f"Dimensionality {dimensionality} is less than the suggested minimum of "
                f"{self.MIN_DIMENSIONALITY}. Performance may be degraded.",
                stacklevel=2,
            )
        if long_text_mode not in ("mean", "truncate"):
            raise ConfigError(
                f"Long text mode must be one of 'mean' or 'truncate', got {long_text_mode!r}"
            )
        if not text:
            raise ConfigError("text must not be None or empty")
        texts = [text] if isinstance(text, str) else text
        vectors, tokens = self._vectors(
            texts,
            prefix,
            dimensionality,
            whole=long_text_mode == "mean",
            atlas=atlas,
            cancel_cb=cancel_cb,
        )
        embeddings: list[Any] = vectors[0].tolist() if isinstance(text, str) else vectors.tolist()
        if return_dict:
            return {"embeddings": embeddings, "n_prompt_tokens": tokens}
        return embeddings

    def _vectors(
        self,
        texts: Sequence[str],
        prefix: str | None,
        dimensionality: int | None,
        *,
        whole: bool,
        atlas: bool,
        cancel_cb: EmbCancelCallbackType | None,
    ) -> tuple[NDArray[np.float64], int]:
        llm = self._llm
        if llm is None:
            raise ConfigError("this Embed4All is closed; make another one")
        known = next((k for k in KNOWN if self._name in k.names), None)
        before = self._prefix_ids(known, prefix)
        room = llm.n_ctx - len(before) - 1
        if room <= OVERLAP:
            raise EmbedError(
                f"Failed to generate embeddings: max chunk length of {room} is smaller than "
                f"overlap of {OVERLAP} tokens"
            )
        chunks: list[list[int]] = []
        owners: list[int] = []
        tokens = 0
        for i, each in enumerate(texts):
            ids = self._text_ids(each, i, whole=whole, atlas=atlas)
            at = 0
            while at < len(ids):
                part = ids[at : at + room]
                chunks.append([*before, *part, self._end])
                owners.append(i)
                tokens += len(part)
                if not whole:
                    break
                at += room if at + room >= len(ids) else room - OVERLAP
        if cancel_cb is not None and cancel_cb(_batch_sizes(chunks, llm.n_ctx), "cpu"):
            raise CancellationError("operation was canceled")
        found = llm.embed(chunks).vectors.astype(np.float64)
        width = found.shape[1]
        wanted = self._width(known, dimensionality, width)
        if known is not None and known.shortened:
            found = found - found.mean(axis=1, keepdims=True)
        found = _normalized(found[:, :wanted])
        sums = np.zeros((len(texts), wanted))
        np.add.at(sums, owners, found)
        return _normalized(sums), tokens

    @property
    def _end(self) -> int:
        assert self._llm is not None
        end = self._llm.tokenizer.encode("")[-1:]
        if not end:
            raise EmbedError("Failed to generate embeddings: the vocabulary ends no text")
        return end[0]

    def _prefix_ids(self, known: Known | None, prefix: str | None) -> list[int]:
        """The tokens before each chunk: the one that begins a text, and the prefix."""
        assert self._llm is not None
        if prefix is None:
            if known is None:
                raise EmbedError(
                    f"Failed to generate embeddings: unknown model {self._name}, specify a prefix "
                    "if applicable or an empty string"
                )
            prefix = known.document
        elif known is not None and prefix not in (known.document, *known.others):
            raise EmbedError(
                f'Failed to generate embeddings: "{prefix}" is not a valid task type for model '
                f"{self._name}"
            )
        around = self._llm.tokenizer.encode(f"{prefix}:" if prefix else "")
        return around[:-1]

    def _text_ids(self, text: str, index: int, *, whole: bool, atlas: bool) -> list[int]:
        assert self._llm is not None
        tokenizer = self._llm.tokenizer
        ids = tokenizer.encode(text, add_special=False)
        if atlas and len(ids) > ATLAS_TOKENS:
            if whole:
                raise EmbedError(
                    f"Failed to generate embeddings: length of text at index {index} is "
                    f"{len(ids)} tokens which exceeds limit of {ATLAS_TOKENS}"
                )
            return ids[:ATLAS_TOKENS]
        return ids or tokenizer.encode(EMPTY_PLACEHOLDER, add_special=False)

    def _width(self, known: Known | None, dimensionality: int | None, width: int) -> int:
        if dimensionality is None or dimensionality == width:
            return width
        can = known is None or known.shortened
        if dimensionality > width or not can:
            raise EmbedError(
                f"Failed to generate embeddings: unsupported dimensionality {dimensionality} for "
                f"model {self._name} (supported: {width}{' and less' if can else ''})"
            )
        return dimensionality


def _batch_sizes(chunks: Sequence[Sequence[int]], most: int) -> list[int]:
    """Tokens of each batch, as gpt4all fills them."""
    sizes = [0]
    for chunk in chunks:
        if sizes[-1] + len(chunk) > most:
            sizes.append(0)
        sizes[-1] += len(chunk)
    return sizes


def _normalized(x: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.sqrt((x * x).sum(axis=1, keepdims=True))
    y: NDArray[np.float64] = x / np.maximum(lengths, 1e-12)
    return y
