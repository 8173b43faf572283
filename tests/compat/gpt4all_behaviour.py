"""What a program sees of GPT4All, played on any implementation; and how its golden is made.

    python tests/compat/gpt4all_behaviour.py MODEL.gguf > tests/compat/gpt4all_behaviour.json

with MODEL the default model's file, in an environment where `pip install gpt4all==2.8.2` has been
run. That version's llama.cpp does not know the pre-tokenizer "smollm", so the file is copied with
"falcon" in its place, which splits these texts alike. Greedy throughout: the words are the same
whoever computes them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYSTEM = "<|im_start|>system\nYou are a pirate.<|im_end|>\n"
TURN = "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{1}<|im_end|>\n"


def play(model: Any) -> dict[str, Any]:
    """Everything that is compared, in one order."""
    seen: list[list[Any]] = []

    def stop_after(n: int) -> Callable[[int, str], bool]:
        seen.clear()

        def callback(token_id: int, text: str) -> bool:
            seen.append([token_id, text])
            return len(seen) < n

        return callback

    played: dict[str, Any] = {}
    capital = "The capital of France is"
    played["plain"] = model.generate(capital, max_tokens=8, temp=0)
    played["streamed"] = list(model.generate(capital, max_tokens=8, temp=0, streaming=True))
    played["top_k 1"] = model.generate(capital, max_tokens=8, temp=1.0, top_k=1)
    played["n_predict wins"] = model.generate(capital, max_tokens=8, n_predict=2, temp=0)
    played["no repeat penalty"] = model.generate(
        "The cat sat. The cat sat. The", max_tokens=8, temp=0, repeat_penalty=1.0
    )
    played["repeat penalty"] = model.generate(
        "The cat sat. The cat sat. The", max_tokens=4, temp=0, repeat_penalty=1.5
    )
    played["stopped"] = model.generate(capital, max_tokens=8, temp=0, callback=stop_after(4))
    played["stopped: seen"] = list(seen)
    played["stopped, streamed"] = list(
        model.generate(capital, max_tokens=8, temp=0, streaming=True, callback=stop_after(3))
    )
    played["nothing"] = model.generate("Hi", max_tokens=0)
    played["outside"] = model.current_chat_session
    with model.chat_session(SYSTEM, TURN) as inside:
        played["is the model"] = inside is model
        played["begun"] = model.current_chat_session
        played["first"] = model.generate("hi", max_tokens=12, temp=0)
        played["second"] = model.generate("who?", max_tokens=12, temp=0, callback=stop_after(4))
        stream = model.generate("who?", max_tokens=12, temp=0, streaming=True)
        played["third"] = list(stream)
        played["session"] = model.current_chat_session
    with model.chat_session("", "Q: {0}\nA:"):
        played["without a place for the answer"] = [
            model.generate(question, max_tokens=8, temp=0)
            for question in ("What is the capital of France?", "Who wrote Don Quixote?")
        ]
        played["its session"] = model.current_chat_session
    played["after"] = model.current_chat_session
    return played


if __name__ == "__main__":
    import gpt4all

    data = Path(sys.argv[1]).read_bytes()
    at = data.index(b"smollm", data.index(b"tokenizer.ggml.pre"))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").write_bytes(data[:at] + b"falcon" + data[at + 6 :])
        with gpt4all.GPT4All(
            "model.gguf", model_path=folder, allow_download=False, n_threads=2
        ) as model:
            played = play(model)
    golden = {
        "provenance": {
            "package": "gpt4all",
            "version": "2.8.2",
            "wheel_sha256": "c61e977afa72475c076211fd9b59a88334fc0062615be8c2f7716363a21fbafa",
            "model": "SmolLM2-135M-Instruct.Q4_1.gguf, pre-tokenizer renamed to falcon",
            "made_by": "python tests/compat/gpt4all_behaviour.py MODEL.gguf",
        },
        "played": played,
    }
    json.dump(golden, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
