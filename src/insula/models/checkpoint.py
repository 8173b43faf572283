"""What one file says about its model, read through checks that remember what was read.

Owns the questions an architecture file asks of metadata and tensors. A missing or impossible
answer is a FormatError that names the key or tensor, what was found and what is needed.
Whatever was never asked for surfaces in `finish`: a tensor that nobody used would change the
maths if it were used, so it is refused unless the architecture says why it may be left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError

#: Larger counts than any model has; a lying file fails here and not in an allocation.
MAX_COUNT = 1 << 24

#: Wider heads than any model has; tables of this length are made before any tensor is checked.
MAX_HEAD_DIM = 1 << 13

OTHER_BACKEND = (
    'the llamacpp backend may run this model (pip install "insula[llamacpp]", '
    "then choose backend llamacpp)"
)


class TensorShape(Protocol):
    """What a checkpoint needs to know of a tensor; `formats.gguf.TensorInfo` is one."""

    @property
    def shape(self) -> Sequence[int]:
        """NumPy order: a linear weight is (out, in)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes that every decoder of the llama family states."""

    n_ctx_train: int
    n_layers: int
    n_embd: int
    n_ff: int
    heads: int
    kv_heads: int
    head_dim: int
    n_rot: int
    n_vocab: int
    eps: float

    @property
    def width_q(self) -> int:
        """Query outputs, and attention's inputs to the output projection."""
        return self.heads * self.head_dim

    @property
    def width_kv(self) -> int:
        """Key outputs, and value outputs."""
        return self.kv_heads * self.head_dim


class Checkpoint:
    """One file's metadata and tensors, for one architecture."""

    def __init__(
        self,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorShape],
        dequantize: Callable[[str], NDArray[np.float32]],
        *,
        n_ctx: int | None = None,
    ) -> None:
        """n_ctx: the context that the graph is for; None: all that the model was trained for."""
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            raise FormatError(
                f"general.architecture is {arch!r}; a model file names its architecture there"
            )
        self.arch = arch
        self.n_ctx = n_ctx
        self._metadata = metadata
        self._tensors = tensors
        self._dequantize = dequantize
        self._used: set[str] = set()

    # -- metadata ---------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Whether the file states `<arch>.<key>`."""
        return f"{self.arch}.{key}" in self._metadata

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_COUNT
    ) -> int:
        """The whole number `<arch>.<key>` in low..high; required if there is no default.

        A list with one value per layer counts as that value if all are equal.
        """
        value = self._value(key, default)
        if isinstance(value, list | np.ndarray):
            distinct = {int(v) if isinstance(v, Integral) else None for v in value}
            if len(distinct) != 1 or None in distinct:
                raise UnsupportedError(
                    f"{self.arch}.{key} differs between layers; the native engine needs one "
                    f"value for all; {OTHER_BACKEND}",
                    backend="native",
                )
            value = distinct.pop()
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise FormatError(f"{self.arch}.{key} is {value!r}, a whole number is needed")
        found = int(value)
        if not low <= found <= high:
            raise FormatError(f"{self.arch}.{key} is {found}, allowed are {low} to {high}")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        """The positive, finite number `<arch>.<key>`; required if there is no default."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, Real | np.floating):
            raise FormatError(f"{self.arch}.{key} is {value!r}, a number is needed")
        found = float(value)
        if not math.isfinite(found) or found <= 0:
            raise FormatError(f"{self.arch}.{key} is {found}, it must be finite and above 0")
        return found

    def number_or_none(self, key: str) -> float | None:
        """`number`, or None where the key is missing or 0, as GGUF switches things off."""
        value = self._metadata.get(f"{self.arch}.{key}")
        return None if value is None or _is_zero(value) else self.number(key)

    def text(self, key: str, default: str) -> str:
        """The string `<arch>.<key>`, or the default."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise FormatError(f"{self.arch}.{key} is {value!r}, a string is needed")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """The truth value `<arch>.<key>`, or the default."""
        value = self._value(key, default)
        if not isinstance(value, bool | np.bool_):
            raise FormatError(f"{self.arch}.{key} is {value!r}, true or false is needed")
        return bool(value)

    def refuse(self, *keys: str) -> None:
        """Raise UnsupportedError if one of the keys asks for maths that the graph lacks."""
        for key in keys:
            value = self._metadata.get(f"{self.arch}.{key}")
            if value is not None and value is not False and not _is_zero(value):
                raise UnsupportedError(
                    f"the native engine has no {key.replace('_', ' ')} for {self.arch} "
                    f"({self.arch}.{key} is {value!r}); {OTHER_BACKEND}",
                    backend="native",
                )

    def _value(self, key: str, default: object) -> Any:
        value = self._metadata.get(f"{self.arch}.{key}", default)
        if value is None:
            raise FormatError(
                f"the metadata has no {self.arch}.{key}, which every {self.arch} model needs; "
                "the file is incomplete or was made by a converter that does not follow GGUF"
            )
        return value

    # -- tensors ----------------------------------------------------------------------------

    def tensor(self, name: str, *shape: int) -> str:
        """`name`, after checking that the tensor is there with this shape ((out, in))."""
        if self.optional(name, *shape) is None:
            raise FormatError(
                f"tensor {name} is missing; a {self.arch} model needs it with shape {shape}"
            )
        return name

    def optional(self, name: str, *shape: int) -> str | None:
        """`name` if the tensor is there (then its shape must fit), else None."""
        info = self._tensors.get(name)
        if info is None:
            return None
        found = tuple(int(n) for n in info.shape)
        if found != shape:
            raise FormatError(
                f"tensor {name} has shape {found}, the metadata needs {shape} "
                "(NumPy order: outputs, inputs)"
            )
        self._used.add(name)
        return name

    def holds(self, name: str) -> bool:
        """Whether the file has this tensor."""
        return name in self._tensors

    def values(self, name: str, *shape: int) -> NDArray[np.float32] | None:
        """The content of a small tensor that the graph itself needs, or None."""
        return None if self.optional(name, *shape) is None else self._dequantize(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a required tensor."""
        info = self._tensors.get(name)
        if info is None:
            raise FormatError(
                f"tensor {name} is missing; a {self.arch} model needs it"
                + ("" if self._tensors else " (the file has no tensors: a vocabulary alone?)")
            )
        return tuple(int(n) for n in info.shape)

    # -- the whole --------------------------------------------------------------------------

    def dims(self) -> Dims:
        """The common sizes, checked against each other."""
        n_embd = self.integer("embedding_length")
        heads = self.integer("attention.head_count")
        kv_heads = self.integer("attention.head_count_kv", heads)
        head_dim = self.integer("attention.key_length", max(1, n_embd // heads), high=MAX_HEAD_DIM)
        value_dim = self.integer("attention.value_length", head_dim)
        n_rot = self.integer("rope.dimension_count", head_dim)
        embedding = self.shape("token_embd.weight")
        if heads % kv_heads:
            raise FormatError(f"{heads} query heads cannot share {kv_heads} kv heads evenly")
        if value_dim != head_dim:
            raise UnsupportedError(
                f"keys are {head_dim} wide and values {value_dim}; the native engine needs "
                f"them equal; {OTHER_BACKEND}",
                backend="native",
            )
        if n_rot % 2 or n_rot > head_dim:
            raise FormatError(
                f"{self.arch}.rope.dimension_count is {n_rot}; it must be even and at most "
                f"the head width {head_dim}"
            )
        if len(embedding) != 2 or embedding[0] < 1:
            raise FormatError(
                f"tensor token_embd.weight has shape {embedding}, needed: (vocabulary, {n_embd})"
            )
        return Dims(
            n_ctx_train=self.integer("context_length"),
            n_layers=self.integer("block_count"),
            n_embd=n_embd,
            n_ff=self.integer("feed_forward_length"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            n_rot=n_rot,
            n_vocab=embedding[0],
            eps=self.number("attention.layer_norm_rms_epsilon"),
        )

    def finish(self, harmless: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Account for the tensors that were not used.

        `harmless` maps a regular expression for whole names to the reason why leaving such
        tensors out is right; they become notes. Any other one raises UnsupportedError.
        """
        unused = [name for name in self._tensors if name not in self._used]
        notes = []
        for pattern, reason in (harmless or {}).items():
            matching = [name for name in unused if re.fullmatch(pattern, name)]
            if matching:
                notes.append(f"{len(matching)} tensors not used, {matching[0]} first: {reason}")
                unused = [name for name in unused if name not in set(matching)]
        if unused:
            some = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
            raise UnsupportedError(
                f"the file holds {len(unused)} tensors that the native engine's {self.arch} "
                f"does not use ({some}); leaving them out could change the model's answers; "
                f"{OTHER_BACKEND}",
                backend="native",
            )
        return tuple(notes)


def _is_zero(value: object) -> bool:
    return isinstance(value, Real) and float(value) == 0.0
