"""Reads the tokenizer keys of a model file's metadata into what the native core takes.

Owns: which keys count and which types they must have. Refuses: any other type, with the key, what
was found and what is allowed. What the values mean, and whether they agree with each other, is
checked natively (native/tokenizer). Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import TokenizerError

PREFIX = "tokenizer.ggml."

#: Token ids; absent means none.
ID_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "unknown_token_id",
    "seperator_token_id",  # spelled like this in the files
    "padding_token_id",
    "cls_token_id",
    "mask_token_id",
)
FLAG_KEYS = (
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
    "remove_extra_whitespaces",
    "normalizer.lowercase",
    "normalizer.strip_accents",
)


@runtime_checkable
class PackedStrings(Protocol):
    """Strings in one buffer, as in formats: string i is `blob[offsets[i]:offsets[i + 1]]`."""

    blob: NDArray[np.uint8]
    offsets: NDArray[np.int64]


class Packed(NamedTuple):
    """The same, for strings that came as a list."""

    blob: NDArray[np.uint8]
    offsets: NDArray[np.int64]


def _mistyped(key: str, value: object, allowed: str) -> TokenizerError:
    found = type(value).__name__
    if isinstance(value, np.ndarray):
        found = f"an array of {value.dtype}"
    return TokenizerError(f"{key} is {found}; it must be {allowed}")


def text(metadata: Mapping[str, Any], key: str) -> str | None:
    """The string at `key`, None if there is none."""
    value = metadata.get(key)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or isinstance(value, str):
        return value
    raise _mistyped(key, value, "a string")


def strings(metadata: Mapping[str, Any], key: str) -> PackedStrings | Packed | None:
    """The array of strings at `key`, None if there is none."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, PackedStrings):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | bytes) for item in value):
        return pack(value)
    raise _mistyped(key, value, "an array of strings")


def pack(items: Sequence[str | bytes]) -> Packed:
    """The strings in one buffer."""
    try:
        pieces = [item if isinstance(item, bytes) else item.encode() for item in items]
    except UnicodeEncodeError as error:
        raise TokenizerError(f"a token is not valid Unicode: {error.reason}") from None
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    return Packed(np.frombuffer(b"".join(pieces), dtype=np.uint8), offsets)


def numbers(
    metadata: Mapping[str, Any], key: str, kinds: str, dtype: type[np.generic], length: int
) -> NDArray[Any] | None:
    """The array of numbers at `key` as `dtype`, None if there is none.

    kinds: NumPy's letters for the kinds of numbers that are allowed ("iu", "f").
    """
    value = metadata.get(key)
    if value is None:
        return None
    allowed = f"an array of {'numbers' if 'f' in kinds else 'integers'}"
    if not isinstance(value, np.ndarray | list | tuple):
        raise _mistyped(key, value, allowed)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise _mistyped(key, value, allowed) from None
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise _mistyped(key, array, allowed)
    if len(array) != length:
        raise TokenizerError(
            f"{key} has {len(array)} entries for {length} tokens; one each is needed"
        )
    if array.dtype.kind in "iu" and len(array) and np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)  # type: ignore[type-var]
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise TokenizerError(f"{key} has an entry outside {limits.min} to {limits.max}")
    return np.ascontiguousarray(array, dtype=dtype)


def scalars(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The ids and flags that are given."""
    found: dict[str, int] = {}
    for name in ID_KEYS:
        value = metadata.get(PREFIX + name)
        if value is None:
            continue
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise _mistyped(PREFIX + name, value, "an integer")
        if not -1 <= value < 2**32:
            raise TokenizerError(f"{PREFIX}{name} is {value}; it must be a token id")
        found[name] = int(value)
    for name in FLAG_KEYS:
        value = metadata.get(PREFIX + name)
        if value is None:
            continue
        if not isinstance(value, bool | np.bool_):
            raise _mistyped(PREFIX + name, value, "true or false")
        found[name] = int(value)
    return found


def build(metadata: Mapping[str, Any], pre: str | None) -> tuple[_native.Tokenizer, str | None]:
    """The native tokenizer for `metadata`, and the name of its pre-tokenizer.

    pre: replaces the pre-tokenizer that the file names. Only byte-pair vocabularies have one.
    """
    model = text(metadata, PREFIX + "model")
    if model is None:
        raise TokenizerError(
            "the file has no tokenizer.ggml.model: it carries no vocabulary that can be used"
        )
    if pre is not None and model != "gpt2":
        raise TokenizerError(
            f"a pre-tokenizer ('{pre}') was given, but only 'gpt2' vocabularies take one,"
            f" and this one is '{model[:64]}'"
        )
    named = {"gpt2": pre or text(metadata, PREFIX + "pre"), "gemma4": "gemma4"}.get(model)
    tokens = strings(metadata, PREFIX + "tokens")
    if tokens is None:
        raise TokenizerError("tokenizer.ggml.tokens is missing: the file has no vocabulary")
    merges = strings(metadata, PREFIX + "merges")
    n = max(len(tokens.offsets) - 1, 0)
    charsmap = metadata.get(PREFIX + "precompiled_charsmap")
    if charsmap is not None and not (
        isinstance(charsmap, np.ndarray) and charsmap.dtype in (np.uint8, np.int8)
    ):
        raise _mistyped(PREFIX + "precompiled_charsmap", charsmap, "an array of bytes")
    native = _native.Tokenizer(
        {
            "model": model,
            "pre": named or "",
            "name": text(metadata, "general.name") or "",
            "architecture": text(metadata, "general.architecture") or "",
        },
        scalars(metadata),
        tokens.blob,
        tokens.offsets,
        merges.blob if merges else None,
        merges.offsets if merges else None,
        numbers(metadata, PREFIX + "scores", "fiu", np.float32, n),
        numbers(metadata, PREFIX + "token_type", "iu", np.int32, n),
        None if charsmap is None else np.ascontiguousarray(charsmap).view(np.uint8),
    )
    return native, named
