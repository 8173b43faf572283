"""The op language, under the name by which architecture files know it.

It lives in `insula.ops.graph`, below both the executors that run it and the models that
write it, so that imports keep going one way.
"""

from insula.ops.graph import (
    Add,
    Attention,
    Embed,
    Glu,
    Graph,
    KVSlot,
    Linear,
    Logits,
    Norm,
    Op,
    Rope,
    Scale,
)

__all__ = [
    "Add",
    "Attention",
    "Embed",
    "Glu",
    "Graph",
    "KVSlot",
    "Linear",
    "Logits",
    "Norm",
    "Op",
    "Rope",
    "Scale",
]
