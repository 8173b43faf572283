"""Go on from a text: whole, in pieces, repeatably, and with probabilities.

python examples/02_generate.py [MODEL]
"""

import sys

from insula import LLM

with LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m", download=True) as llm:
    answer = llm.generate("The capital of France is", max_tokens=12, temperature=0)
    print(answer.text)

    # What ran, and how fast. Nothing that differs from what was asked is left out of the report.
    report = answer.report
    print(f"[{report.engine} on {report.isa}: {report.engine_reason}]")
    print(f"[{report.completion_tokens} tokens, {report.decode_tokens_per_second:.0f} per second]")

    # In pieces, as they come. Leaving the loop ends the work.
    for chunk in llm.stream("Once upon a time", max_tokens=24, seed=7):
        print(chunk.text, end="", flush=True)
    print()

    # The same seed gives the same text, whatever else runs, however many threads there are.
    first, second = (llm.generate("Roses are", max_tokens=8, seed=42) for _ in range(2))
    assert first.token_ids == second.token_ids

    # Several prompts advance together.
    for one in llm.generate(["Two plus two is", "Dos y dos son"], max_tokens=6, temperature=0):
        print(repr(one.text))

    # What else it might have said.
    scored = llm.generate("The sky is", max_tokens=1, temperature=0, logprobs=3)
    for token in scored.logprobs or ():
        for _, piece, logprob in token.top:
            print(f"{logprob:7.3f}  {piece.decode(errors='replace')!r}")
