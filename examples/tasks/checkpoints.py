"""The checkpoints of these notebooks: the same weights for transformers and for Insula.

The real one is the default model, written as a folder that transformers reads. The others are BERTs
of a few thousand random weights: what they say means nothing, but both sides must say the same.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from insula.hub.resolve import locate
from insula.models.convert import convert
from insula.models.export import export

#: Gone when the notebook's kernel ends.
_PLACE = tempfile.TemporaryDirectory(prefix="insula-notebook-")
PLACE = Path(_PLACE.name)

WORDS = "the cat dog sun mat film book is was sat on ran great awful where this example"


def quiet() -> None:
    """No progress bars and advice of transformers in the outputs."""
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def default_model() -> Path:
    """The folder of smollm2:135m: its 4-bit weights, decoded to float32."""
    folder = PLACE / "SmolLM2-135M-Instruct"
    if not folder.exists():
        export(locate("smollm2:135m", allow_download=True).path, folder)
    return folder


def tiny_bert(kind: str, labels: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """(folder for transformers, GGUF file for us) of a random BERT.

    kind: Model, ForSequenceClassification or ForQuestionAnswering (which no GGUF file can hold;
    the file is not there then).
    """
    import torch
    import transformers

    folder, file = PLACE / f"tiny-bert-{kind}", PLACE / f"tiny-bert-{kind}.gguf"
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [word for word in WORDS.split() if word not in letters]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, ".", ",", "?"]
    vocabulary += [f"##{letter}" for letter in letters]
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    getattr(transformers, f"Bert{kind}")(config).save_pretrained(folder)
    transformers.BertTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, do_lower_case=True
    ).save_pretrained(folder)
    if kind != "ForQuestionAnswering":
        convert(folder, file, dtype="f32")
    return folder, file
