"""Look at what a model expects: logits, and how much a text surprises it.

python examples/04_probabilities.py [MODEL]
"""

import sys

import numpy as np

from insula import LLM

with LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m", download=True) as llm:
    ids = llm.tokenize("In a village of La Mancha, the name of which I have no desire to recall")
    logits = llm.logits(ids)  # float32 [tokens, vocabulary]
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    # Row t is for the token after ids[t]: how likely was the one that came?
    for t, token in enumerate(ids[1:]):
        likeliest = llm.detokenize([int(logits[t].argmax())])
        print(f"{logprobs[t, token]:7.2f}  {llm.detokenize([token])!r:12}  {likeliest!r}")

    for text in (
        "The cat sat on the mat and looked at the dog.",
        "El gato se sentó en la alfombra y miró al perro.",
        "mat the dog looked sat and The cat on the at.",
    ):
        print(f"{llm.perplexity(text):10.1f}  {text}")
