"""How a file says what becomes of a model's hidden states, and by which head.

Keys and tensors as llama.cpp's (gguf-py, Keys.LLM.POOLING_TYPE and enum PoolingType; cls, cls.out).
GGUF has no key for the normalization of vectors nor for the longest text that sentence-transformers
cuts at, nor for a head's activation: `pooling.normalize`, `pooling.max_tokens` and
`classifier.activation` are ours. Where they are missing vectors are
normalized, as llama.cpp and gpt4all do, and a text may fill the context.
"""

from __future__ import annotations

from types import MappingProxyType

from insula.errors import FormatError, UnsupportedError
from insula.models.checkpoint import OTHER_BACKEND, Checkpoint
from insula.ops.graph import Head, HeadActivation, Pooling, PoolingKind

#: `<arch>.pooling_type`; 0: none.
TYPES: MappingProxyType[int, PoolingKind] = MappingProxyType(
    {1: "mean", 2: "cls", 3: "last", 4: "rank"}
)
#: `<arch>.classifier.activation`, after a head's first layer.
ACTIVATIONS: MappingProxyType[str, HeadActivation] = MappingProxyType(
    {"tanh": "tanh", "relu": "relu"}
)


def from_checkpoint(ckpt: Checkpoint, *, n_embd: int, head: bool = False) -> Pooling | None:
    """What the file states; None where it states none. head: the architecture may have one.

    Raises UnsupportedError for a head where there can be none, FormatError for bad values.
    """
    number = ckpt.integer("pooling_type", 0, low=0)
    if number == 0:
        return None
    kind = TYPES.get(number)
    if kind is None or (kind == "rank" and not head):
        known = ", ".join(f"{i} ({k})" for i, k in TYPES.items() if head or k != "rank")
        raise UnsupportedError(
            f"{ckpt.arch}.pooling_type is {number}; for {ckpt.arch} the native engine knows "
            f"{known}; {OTHER_BACKEND}",
            backend="native",
        )
    most = ckpt.integer("pooling.max_tokens", 0, low=0)
    return Pooling(
        kind=kind,
        normalize=kind != "rank" and ckpt.flag("pooling.normalize", default=True),
        head=_head(ckpt, n_embd) if kind == "rank" else None,
        max_tokens=most or None,
    )


def _head(ckpt: Checkpoint, n_embd: int) -> Head:
    labels = ckpt.texts("classifier.output_labels")
    # Only DistilBERT has no token types; files of other converters do not say what its head has.
    usual = "tanh" if ckpt.holds("token_types.weight") else "relu"
    act = ckpt.text("classifier.activation", usual)
    if act not in ACTIVATIONS:
        raise UnsupportedError(
            f"{ckpt.arch}.classifier.activation is {act[:60]!r}; the native engine knows "
            f"{', '.join(ACTIVATIONS)}",
            backend="native",
        )
    n_out = ckpt.shape("cls.output.weight")[0]
    if labels and len(labels) != n_out:
        raise FormatError(
            f"{ckpt.arch}.classifier.output_labels has {len(labels)} entries, cls.output.weight "
            f"{n_out} rows; they must be equal"
        )
    return Head(
        out=ckpt.tensor("cls.output.weight", n_out, n_embd),
        out_bias=ckpt.optional("cls.output.bias", n_out),
        dense=ckpt.optional("cls.weight", n_embd, n_embd),
        dense_bias=ckpt.optional("cls.bias", n_embd),
        act=ACTIVATIONS[act],
        labels=labels,
    )
