"""Speculation on and off, in turns: tokens/s, the share of guesses that held, and equal tokens.

    python bench/speculation.py [--model NAME] [--speculate ngram|DRAFT] [--rounds N]

Three prompts: one whose answer copies most of its prompt (code with one name changed), and two
that ask for prose. Each greedily and sampled with a seed. Off and on answer alternately, so that
a machine that slows down slows both; the ratio is the median of the rounds' ratios. It fails if
one token differs. One JSON line goes to bench/results/speculation.jsonl.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import machine

from insula import LLM

RESULTS = Path(__file__).resolve().parent / "results" / "speculation.jsonl"

CODE = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from empty stack")
        return self.items.pop()

    def peek(self):
        if not self.items:
            raise IndexError("peek from empty stack")
        return self.items[-1]

    def is_empty(self):
        return len(self.items) == 0

    def size(self):
        return len(self.items)
"""
PROMPTS = {
    "edit": "Repeat the following Python code exactly, but rename the class Stack to Pile:\n\n"
    f"```python\n{CODE}```\n",
    "story": "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "explain": "Explain in a few paragraphs how a refrigerator works.",
}


def compare(off: LLM, on: LLM, *, rounds: int, max_tokens: int) -> Iterator[dict[str, Any]]:
    """A row per prompt and temperature."""
    for temperature in (0.0, 0.8):
        for name, prompt in PROMPTS.items():
            messages = [{"role": "user", "content": prompt}]
            options = {"temperature": temperature, "seed": 1, "max_tokens": max_tokens}
            speeds: tuple[list[float], list[float]] = ([], [])
            proposed = accepted = n = 0
            for _ in range(rounds):
                plain, found = off.chat(messages, **options), on.chat(messages, **options)
                if plain.token_ids != found.token_ids:
                    sys.exit(f"{name} at {temperature}: speculation changed the answer")
                speeds[0].append(plain.report.decode_tokens_per_second)
                speeds[1].append(found.report.decode_tokens_per_second)
                proposed += found.report.draft_proposed
                accepted += found.report.draft_accepted
                n = len(plain.token_ids)
            yield {
                "prompt": name,
                "temperature": temperature,
                "tokens": n,
                "off": [round(x, 1) for x in speeds[0]],
                "on": [round(x, 1) for x in speeds[1]],
                "ratio": round(median(b / a for a, b in zip(*speeds, strict=True)), 3),
                "proposed": proposed / rounds,
                "accepted": accepted / rounds,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--speculate", default="ngram")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=200)
    given = parser.parse_args()
    with (
        LLM(given.model, n_ctx=1024) as off,
        LLM(given.model, n_ctx=1024, speculate=given.speculate) as on,
    ):
        info = on.model_info
        rows = []
        for row in compare(off, on, rounds=given.rounds, max_tokens=given.max_tokens):
            rows.append(row)
            print(
                f"{row['prompt']:8} t={row['temperature']}  {row['tokens']:4} tokens  "
                f"off {median(row['off']):6.1f}/s  on {median(row['on']):6.1f}/s  "
                f"x{row['ratio']:.2f}  accepted {row['accepted']:.0f} of {row['proposed']:.0f}",
                flush=True,
            )
    facts = {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "model": info.name,
        "speculate": info.speculation,
        "machine": machine(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "isa": info.isa,
        "threads": info.threads,
        "rows": rows,
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
