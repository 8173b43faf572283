"""Low-rank adapters (LoRA, arXiv:2106.09685) of a model, and the graph that applies them.

Owns what an adapter is once read (`Adapter`) and where its products stand among the model's ops.
Refused: an adapter that changes what no `Linear` of the model is, or whose factors do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError
from insula.ops.graph import Graph, Linear, Lora, Op

F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter: for each weight by GGUF's name its factors (down [r, in], up [out, r]).

    `up` has the scale in it: the weight changes by up @ down.
    """

    name: str
    factors: Mapping[str, tuple[F32, F32]]

    @property
    def nbytes(self) -> int:
        """Bytes of the factors, as they are read and as the kernels hold them (down in panels of
        16 rows)."""
        read = sum(down.nbytes + up.nbytes for down, up in self.factors.values())
        packed = sum(
            -(-len(down) // 16) * 16 * down.shape[1] * 4 + -(-len(up) // 16) * 16 * up.shape[1] * 4
            for down, up in self.factors.values()
        )
        return int(read + packed)

    @property
    def digest(self) -> str:
        """The same for the same content: what it computes may be kept under it."""
        h = blake2b(digest_size=16)
        for weight, pair in sorted(self.factors.items()):
            h.update(weight.encode())
            for factor in pair:
                h.update(repr(factor.shape).encode())
                h.update(factor.tobytes())
        return h.hexdigest()


def adapted(graph: Graph, adapters: Sequence[Adapter]) -> Graph:
    """`graph` with a `Lora` behind each `Linear` that an adapter changes.

    Products of one input stay together, so that they are still computed together; the changes
    follow them. Raises FormatError for an adapter that does not belong to this model.
    """
    changed = {weight for adapter in adapters for weight in adapter.factors}
    ops: list[Op] = []
    waiting: list[Lora] = []
    found: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, Linear) or any(op.src != w.src or op.dst == w.dst for w in waiting):
            ops += waiting
            waiting = []
        ops.append(op)
        if isinstance(op, Linear):
            base = op.weight.partition("[")[0]
            if base in changed:
                found.add(base)
                waiting.append(Lora(dst=op.dst, src=op.src, weight=op.weight))
    for adapter in adapters:
        strangers = sorted(set(adapter.factors) - found)
        if strangers:
            raise FormatError(
                f"the adapter {adapter.name} changes {strangers[0]}"
                + (f" and {len(strangers) - 1} more" if len(strangers) > 1 else "")
                + f", which this {graph.arch} model does not multiply by; it was made for another "
                "model, or for a part that adapters cannot change here"
            )
    return replace(graph, ops=tuple(ops))


def factors(adapter: Adapter, weight: str, *, out: int, width: int) -> tuple[F32, F32] | None:
    """The adapter's factors for a weight of this shape, or some rows of one ("name[a:b]").

    None: it leaves that weight alone. Raises FormatError for factors of another shape.
    """
    base, _, rows = weight.partition("[")
    if base not in adapter.factors:
        return None
    down, up = adapter.factors[base]
    if rows:
        start, stop = (int(n) for n in rows.removesuffix("]").split(":"))
        up = up[start:stop]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise FormatError(
            f"the adapter {adapter.name} has factors {down.shape} and {up.shape} for {base}; "
            "they are [r, in] and [out, r]"
        )
    if (len(up), down.shape[1]) != (out, width):
        raise FormatError(
            f"the adapter {adapter.name} changes {base} as if it were {(len(up), down.shape[1])}; "
            f"the model's is {(out, width)}: it was made for another model"
        )
    return down, up
