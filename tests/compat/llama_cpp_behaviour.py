"""What a program sees of Llama, played on any implementation; and how its golden is made.

    python tests/compat/llama_cpp_behaviour.py > tests/compat/llama_cpp_behaviour.json

run from the repository's root with PYTHONPATH=tests:src, in an environment that has insula and
`llama-cpp-python==0.3.36`. The model is the tests' own tiny random llama in float32, so every
implementation computes the same but for rounding. Greedy throughout, or one token to choose from.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPT = "the quick brown"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello there"},
]


def play(module: Any, path: Path) -> dict[str, Any]:
    """Everything that is compared, in one order."""
    played: dict[str, Any] = {}
    llm = module.Llama(str(path), n_ctx=256, n_threads=1, verbose=False, logits_all=True)

    # First, because the original's `sample` goes on with the sampler of the last completion.
    ids = llm.tokenize(PROMPT.encode())
    llm.eval(ids)
    by_hand = []
    for _ in range(6):
        token = int(llm.sample(temp=0.0))
        by_hand.append(token)
        llm.eval([token])
    played["by hand"] = by_hand
    played["evaluated"] = [int(i) for i in llm.eval_tokens]
    played["scores"] = plain([float(x) for x in llm.scores[len(ids) - 1][:6]])
    state = llm.save_state()
    stream = llm.generate(ids, temp=0.0)
    played["generated"] = [int(next(stream)) for _ in range(6)]
    llm.load_state(state)
    played["restored"] = [llm.n_tokens, int(next(llm.generate([*ids, *by_hand], temp=0.0)))]
    # A random model says bytes that are no text, which each shows in its own way: not those.
    words = {i: llm.detokenize([i]) for i in range(llm.n_vocab())}
    never = {i: -100.0 for i, word in words.items() if not word or not word.isascii()}
    greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": 10, "logit_bias": never}

    def rolled(answer: Any) -> Any:
        return plain(list(answer) if not isinstance(answer, dict) else answer)

    played["whole"] = rolled(llm(PROMPT, **greedy))
    played["streamed"] = rolled(llm(PROMPT, stream=True, **greedy))
    played["named"] = rolled(llm.create_completion(PROMPT, model="m", **greedy))
    played["echo"] = rolled(llm(PROMPT, echo=True, **greedy))
    played["ids"] = rolled(llm.create_completion(llm.tokenize(PROMPT.encode()), **greedy))
    text = played["whole"]["choices"][0]["text"]
    played["stop"] = rolled(llm(PROMPT, stop=[text[4:6]], **greedy))
    # The original has a chunk more, without text, where a stop string was held back.
    chunks = rolled(llm(PROMPT, stop=text[4:6], stream=True, **greedy))
    played["stop, streamed"] = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    played["stop, streamed: end"] = chunks[-1]
    played["logprobs"] = rolled(llm(PROMPT, logprobs=2, **greedy))
    played["logprobs, streamed"] = rolled(llm(PROMPT, logprobs=2, stream=True, **greedy))
    # The original pairs an echoed token with the row after it: its numbers are not compared.
    echoed = rolled(llm(PROMPT, logprobs=1, echo=True, **greedy))["choices"][0]["logprobs"]
    for column in ("tokens", "text_offset"):
        played[f"logprobs, echo: {column}"] = echoed[column][: llm.n_tokens]
    played["top_k 1"] = rolled(
        llm(PROMPT, max_tokens=6, temperature=1.0, top_k=1, seed=3, logit_bias=never)
    )
    played["penalty"] = rolled(llm(PROMPT, repeat_penalty=1.6, **greedy))
    played["bias"] = rolled(llm(PROMPT, **(greedy | {"logit_bias": {70: 100.0}})))
    played["to the end"] = rolled(llm(PROMPT, max_tokens=None, temperature=0.0))["usage"]
    played["too many"] = rolled(llm(PROMPT, max_tokens=4000, temperature=0.0))["usage"]
    played["chat"] = rolled(llm.create_chat_completion(MESSAGES, **greedy))
    played["chat, streamed"] = rolled(llm.create_chat_completion(MESSAGES, stream=True, **greedy))
    played["chat, logprobs"] = rolled(
        llm.create_chat_completion(MESSAGES, logprobs=True, top_logprobs=2, **greedy)
    )

    def only_even(ids: Any, scores: Any) -> Any:
        scores[[i for i in words if i % 2 or i in never]] = -1e9
        return scores

    def after_four(ids: Any, scores: Any) -> bool:
        return len(ids) >= n_prompt + 4

    n_prompt = len(llm.tokenize(PROMPT.encode()))
    processors = module.LogitsProcessorList([only_even])
    criteria = module.StoppingCriteriaList([after_four])
    played["processor"] = rolled(
        llm(PROMPT, logits_processor=processors, temperature=0.0, max_tokens=10)
    )
    played["criterion"] = rolled(llm(PROMPT, stopping_criteria=criteria, **greedy))
    played["tokens"] = {
        "plain": llm.tokenize(b"hello <|end|> there"),
        "special": llm.tokenize(b"hello <|end|> there", special=True),
        "no bos": llm.tokenize(b"hello", add_bos=False),
        "back": llm.detokenize([1, 40, 41, 280]).decode(),
        "back, special": llm.detokenize([1, 40, 41], special=True).decode(),
        "bos": llm.token_bos(),
        "eos": llm.token_eos(),
        "nl": llm.token_nl(),
        "n_ctx": llm.n_ctx(),
        "n_vocab": llm.n_vocab(),
        "n_embd": llm.n_embd(),
    }
    kept = ("general.architecture", "llama.block_count", "tokenizer.ggml.model")
    played["metadata"] = {key: llm.metadata[key] for key in kept}
    played["chat_format"] = llm.chat_format
    played["errors"] = {
        "too long": kind(lambda: llm("a b c " * 200)),
        "no such file": kind(lambda: module.Llama(str(path) + ".no", verbose=False)),
        "no embeddings": kind(lambda: llm.embed("hi")),
    }
    llm.close()
    return played


def kind(call: Any) -> str:
    """Which of the two types that programs catch a call raises."""
    try:
        call()
    except Exception as error:
        return next(
            t.__name__ for t in (ValueError, RuntimeError, Exception) if isinstance(error, t)
        )
    return "nothing"


def plain(value: Any) -> Any:
    """Without what differs from run to run; numbers to four places."""
    if isinstance(value, dict):
        return {
            key: f"<{key}>"
            if key == "created" or (key == "model" and "/" in str(item))
            else str(item).split("-")[0]
            if key == "id"
            else plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [plain(item) for item in value]
    return (
        float(f"{value:.4f}")
        if hasattr(value, "__float__") and not isinstance(value, int | str)
        else value
    )


if __name__ == "__main__":
    import llama_cpp

    from tiny_chat_model import write_tiny

    with tempfile.TemporaryDirectory() as folder:
        played = play(llama_cpp, write_tiny(Path(folder) / "tiny.gguf"))
    golden = {
        "provenance": {
            "package": "llama-cpp-python",
            "version": llama_cpp.__version__,
            "model": "tests/tiny_chat_model.py: write_tiny, its defaults",
            "made_by": "PYTHONPATH=tests:src python tests/compat/llama_cpp_behaviour.py",
        },
        "played": played,
    }
    json.dump(golden, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
