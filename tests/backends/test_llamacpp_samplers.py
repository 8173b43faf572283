"""llama.cpp's samplers beside ours: the same logits, the same history, the same candidates.

The handler reports the raw distribution of every token, which is all that our samplers need to say
what may follow; so each of its choices is judged by ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from insula.engine.backends.llamacpp import LlamaCppEngine
from insula.engine.breakers import BreakerTable
from insula.engine.request import Request
from insula.engine.sampling import Sampler
from insula.types import SamplingParams

#: Leaves six letters, so that much is repeated and every token is named.
LETTERS = {i: -100.0 for i in range(266) if i not in set(b"abcdef")}
STATE = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 3.0}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0, "dry_multiplier": 0.9},
        {"temperature": 0.0, "dry_multiplier": 1.3, "dry_base": 1.2, "dry_allowed_length": 1},
        {"temperature": 0.0, "dry_multiplier": 0.9, "dry_penalty_last_n": 9},
        {"temperature": 0.0, "dry_multiplier": 2.0, "dry_sequence_breakers": ("a",)},
        {"temperature": 0.0, "dry_multiplier": 2.0, "dry_sequence_breakers": ("ab", "e", "cde")},
        STATE | {"dry_multiplier": 5.0, "top_k": 1},
        STATE | {"xtc_probability": 1.0, "xtc_threshold": 0.1},
        STATE | {"top_n_sigma": 0.02},
        STATE | {"mirostat": 2, "mirostat_tau": 1.3, "mirostat_eta": 0.4, "temperature": 1.0},
        STATE | {"dynatemp_range": 3.0, "temperature": 3.0, "min_p": 0.3},
    ],
    ids=str,
)
def test_each_choice_is_one_of_ours(xverse: LlamaCppEngine, options: dict[str, Any]) -> None:
    params = SamplingParams(
        **options, max_tokens=60, seed=4, logprobs=266, ignore_eos=True, logit_bias=LETTERS
    )
    prompt = tuple(xverse.tokenizer.encode("the abc abd abc"))
    answer = xverse.submit(Request(ids=prompt, params=params)).result()
    assert answer.logprobs is not None
    assert len(answer.token_ids) == 60
    breakers = BreakerTable(xverse.tokenizer).find(params.dry_sequence_breakers)
    sampler = Sampler(params, breakers=breakers)
    history, mu, widths = list(prompt), None, set()
    for position, (token, scored) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
        logits = np.full(266, -np.inf, dtype=np.float32)
        for token_id, _, logprob in scored.top:
            logits[token_id] = logprob
        so_far = np.array(history, dtype=np.int32)
        ids, p_V = sampler.distribution(logits, so_far, position=position, mirostat_mu=mu)
        assert token in ids
        widths.add(len(ids))
        if params.mirostat:
            surprise = -np.log2(p_V[ids.tolist().index(token)])
            mu = (mu or 2 * params.mirostat_tau) - params.mirostat_eta * (
                surprise - params.mirostat_tau
            )
        history.append(token)
    assert min(widths) < 266
    if params.temperature == 0 or params.top_k == 1:
        assert widths == {1}
    if params.temperature == 0:
        plain = SamplingParams(temperature=0.0, max_tokens=60, logit_bias=LETTERS, ignore_eos=True)
        assert xverse.submit(Request(ids=prompt, params=plain)).result().text != answer.text
