"""What decoder blocks share: ops made from a block's tensor names, and the buffers they use.

An architecture file writes its block as a list of these; what differs between architectures
stays in their files. Every name is checked for presence and shape as the op is made.
"""

from __future__ import annotations

from insula.models.checkpoint import Checkpoint, Dims
from insula.ops.graph import Linear, Norm, rows_of


class Block:
    """Makes the ops of one block from tensor names below a prefix such as blk.3."""

    def __init__(self, ckpt: Checkpoint, prefix: str, *, eps: float) -> None:
        self._ckpt = ckpt
        self._prefix = prefix
        self._eps = eps

    def linear(self, dst: str, src: str, name: str, *, out: int, width: int) -> Linear:
        """dst = src @ <name>.weight.T, plus <name>.bias if the file has one."""
        return Linear(
            dst=dst,
            src=src,
            weight=self._ckpt.tensor(f"{self._prefix}.{name}.weight", out, width),
            bias=self._ckpt.optional(f"{self._prefix}.{name}.bias", out),
        )

    def part(
        self, dst: str, src: str, name: str, *, rows: tuple[int, int], of: int, width: int
    ) -> Linear:
        """`linear` by some rows of <name>.weight, which has `of` of them."""
        weight = self._ckpt.tensor(f"{self._prefix}.{name}.weight", of, width)
        return Linear(dst=dst, src=src, weight=rows_of(weight, *rows))

    def norm(self, dst: str, src: str, name: str, *, width: int, heads: int = 1) -> Norm:
        """RMS norm by <name>.weight, which has `width` entries, over each of `heads` parts."""
        return Norm(
            dst=dst,
            src=src,
            weight=self._ckpt.tensor(f"{self._prefix}.{name}.weight", width),
            eps=self._eps,
            heads=heads,
        )


def buffers(d: Dims) -> dict[str, int]:
    """The activations of a decoder: one set, used again by every layer.

    x residual stream, h its norm, q k v a attention, g u feed-forward, d what is added to x.
    """
    return {
        "x": d.n_embd,
        "h": d.n_embd,
        "q": d.width_q,
        "k": d.width_kv,
        "v": d.width_kv,
        "a": d.width_q,
        "g": d.n_ff,
        "u": d.n_ff,
        "d": d.n_embd,
    }
