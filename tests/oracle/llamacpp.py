"""llama.cpp's next-token distributions, through the completion handler of the xllamacpp wheel.

The handler gives the n most likely tokens with the logarithms of their probabilities under the
unmodified softmax. One request per position: the prompt grows by a token, its cached part is
used again, so that each position costs one decoding step of llama.cpp.

An answer that ends the text, or is part of a character, comes without probabilities; so the
sampler, which sees the logits later, is made to choose a plain letter.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class LlamaCpp:
    """One model in llama.cpp, two threads, its own defaults otherwise."""

    def __init__(self, model: Path, *, letter: int, n_ctx: int = 2048, threads: int = 2) -> None:
        """letter: the id of a token that is one ASCII letter."""
        import xllamacpp

        self._letter = letter

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = n_ctx
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.warmup = False
        params.verbosity = 0
        self.version = f"xllamacpp {xllamacpp.__version__}"
        self._server = xllamacpp.Server(params)

    def top(self, ids: list[int], n: int) -> tuple[np.ndarray, np.ndarray]:
        """(token ids int32 [n], log probabilities float64 [n]) after the prompt `ids`."""
        answer = self._server.handle_completions(
            {
                "prompt": [int(i) for i in ids],
                "n_predict": 1,
                "n_probs": n,
                "cache_prompt": True,
                "temperature": 0.0,
                "logit_bias": [[self._letter, 1000.0]],
            }
        )
        if isinstance(answer, str | bytes):
            answer = json.loads(answer)
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp answered {str(answer)[:300]}")
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return (
            np.array([t["id"] for t in top], np.int32),
            np.array([t["logprob"] for t in top], np.float64),
        )
