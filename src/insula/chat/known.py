"""Published templates that were read and found to do nothing but format, by sha256.

They render in this process, which spares a program that uses a common model the child process.
Each was checked to loop over its input alone; the work of most grows with the input, of two
(Mistral's comparisons of messages, gpt-oss's look ahead) with its square, so that long
conversations go to the child all the same. A template that differs in one character is unknown.
"""

from __future__ import annotations

import hashlib

from insula.chat.formats import FORMATS

#: sha256 of the UTF-8 source -> where it comes from.
_PUBLISHED = {
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": (
        "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
    "19eacf64569032f07644ea92c8e2a87af06ee7008147557302c31e474912ca97": "HuggingFaceTB/SmolLM3-3B",
    "7ce09d55d3690e06c70b5c07228cc7e8c99c43a23cdc027762be4011efcdea6c": (
        "NousResearch/Hermes-3-Llama-3.1-8B, tool_use"
    ),
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": "Qwen/Qwen2.5-7B-Instruct",
    "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5": "Qwen/Qwen3-0.6B",
    "dd2675619a64a449cdcdd2b93e605a0a50764cee41e344f244752bc93643936c": (
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    ),
    "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6": "google/gemma-2-2b-it",
    "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65": (
        "meta-llama/Llama-3.1-8B-Instruct"
    ),
    "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90": (
        "microsoft/Phi-3.5-mini-instruct"
    ),
    "e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272": (
        "mistralai/Mistral-Nemo-Instruct-2407"
    ),
    "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146": "openai/gpt-oss-120b",
}


def origin(source: str) -> str | None:
    """Where a template comes from, if it is one of those read."""
    for name, text in FORMATS.items():
        if source == text:
            return f"insula's {name} format"
    return _PUBLISHED.get(hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest())
