"""Text to token ids and back, from the vocabulary inside a model file."""

from insula.tokenizer.detokenizer import Detokenizer
from insula.tokenizer.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer"]
