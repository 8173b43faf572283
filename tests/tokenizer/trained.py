"""SentencePiece models trained on the shared texts, as GGUF metadata, for the slow tier."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer import small

TEXTS = ("el_quijote_primera_parte.txt", "tinyshakespeare.txt")
POOLS = ["  \t\n\u00a0\u3000", "abc XYZ's", "０１２ﬁ№½Å", "éñÀ\u0301\u0303e\u0301", "🦙😀中文한글"]
POOLS += ["<sep><ctl><s></s><unk>", "\u2581 \u2581", "\u200b\u00ad"]


def train(shared: Path, folder: Path, **options: Any) -> Path:
    """A model of 2000 pieces; the options are the trainer's. The same one each time: sentencepiece
    adds scores in float32, and a sample of the texts drawn anew would now and then make a model
    with a tie that falls otherwise in float64, which llama.cpp and we use."""
    import sentencepiece

    sentencepiece.set_random_generator_seed(1)
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(str(shared / "data/texts" / name) for name in TEXTS),
        model_prefix=str(folder / "model"),
        vocab_size=2000,
        minloglevel=2,
        num_threads=1,
        input_sentence_size=4000,
        **options,
    )
    return folder / "model.model"


def metadata(model: Path, kind: str) -> dict[str, Any]:
    """What llama.cpp's converter writes for it."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    user = small.USER_DEFINED
    found = small.metadata(
        kind,
        [p.piece.replace(small.MARK, " ") if p.type == user else p.piece for p in proto.pieces],
        [p.type for p in proto.pieces],
        scores=np.array([-1000.0 if p.type == user else p.score for p in proto.pieces], np.float32),
        bos_token_id=proto.trainer_spec.bos_id,
        eos_token_id=proto.trainer_spec.eos_id,
        unknown_token_id=proto.trainer_spec.unk_id,
        add_space_prefix=proto.normalizer_spec.add_dummy_prefix,
    )
    if kind == "t5":
        rules = proto.normalizer_spec
        found[small.P + "remove_extra_whitespaces"] = rules.remove_extra_whitespaces
        found[small.P + "precompiled_charsmap"] = np.frombuffer(
            rules.precompiled_charsmap, np.uint8
        )
    return found


def texts(shared: Path, count: int, *, avoid: str) -> Iterator[str]:
    """Pieces of the books, and mixtures of what is hard; none of them holds `avoid`."""
    rng = random.Random(count)
    book = "".join((shared / "data/texts" / name).read_text() for name in TEXTS)
    for _ in range(count):
        out = []
        for _ in range(rng.randrange(1, 12)):
            if rng.random() < 0.4:
                start = rng.randrange(len(book))
                out.append(book[start : start + rng.randrange(1, 100)])
            else:
                pool = rng.choice(POOLS)
                out.append("".join(rng.choices(pool, k=rng.randrange(1, 5))))
        yield "".join(out).replace(avoid, "")
