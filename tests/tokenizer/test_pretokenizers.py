"""Pre-tokenizers against Oniguruma, which Hugging Face tokenizers uses, on the same expressions."""

from __future__ import annotations

import random
import time

import pytest
from tokenizers import Regex, pre_tokenizers

from insula import _native
from insula.errors import TokenizerError, UnsupportedError
from insula.tokenizer import Tokenizer
from tokenizer import small

#: The expressions behind the steps that are functions in the native code.
FUNCTIONS = {
    "@digit-groups-to-word-end": r"\d{1,3}(?=(?:\d{3})*\b)",
    "@cut-digits-by-three": r"(?=(\d{3})+(?!\d))",
    "@trailing-space": r"\s+$",
}

#: Every name of llama.cpp's src/llama-vocab.cpp, with what must become of it here.
LLAMA_CPP = """
a.x-4.0 bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2
falcon falcon-h1 falcon3 gemma4 gigachat glm4 gpt-2 gpt-4o gpt3-finnish granite-docling
granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2
jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2
kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2
midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35
refact roberta-bpe sarvam-moe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder
superbpe talkie tekken tiny_aya trillion ufakzeka viking youtu
""".split()
REFUSED = ["afmoe", "whitespace"]

DISTINCT = {tuple(_native.pretokenizer_steps(name)): name for name in _native.pretokenizer_names()}


def pieces(name: str, text: str) -> list[str]:
    """What the native pre-tokenizer cuts `text` into."""
    data, found, start = text.encode(), [], 0
    for end in _native.pretokenize(name, data):
        found.append(data[start:end].decode())
        start = end
    return found


@pytest.mark.parametrize("name", sorted(DISTINCT.values()))
def test_cuts_as_oniguruma_does(name: str) -> None:
    steps = [FUNCTIONS.get(step, step) for step in _native.pretokenizer_steps(name)]
    oracle = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(step), "isolated") for step in steps]
    )
    rng = random.Random(name)
    for _ in range(120):
        text = small.random_text(rng, rng.choice((3, 10, 40)))
        assert pieces(name, text) == [piece for piece, _ in oracle.pre_tokenize_str(text)]


def test_every_code_point_is_cut_as_oniguruma_does() -> None:
    oracle = pre_tokenizers.Split(Regex(_native.pretokenizer_steps("kimi-k2")[0]), "isolated")
    surrogates = range(0xD800, 0xE000)
    assigned = [*range(0, 0x32400, 0x400), *range(0xE0000, 0xE0400, 0x400), 0xF0000, 0x10FC00]
    for start in assigned:
        codes = [c for c in range(start, start + 0x400) if c not in surrogates]
        if text := "".join(f"a{chr(c)}Z{chr(c)}1" for c in codes):
            assert pieces("kimi-k2", text) == [p for p, _ in oracle.pre_tokenize_str(text)]


def test_every_name_of_llama_cpp_is_done_or_refused() -> None:
    assert sorted(_native.pretokenizer_names()) == sorted(LLAMA_CPP)
    for name in REFUSED:
        with pytest.raises(UnsupportedError, match=f"'{name}' is not supported: "):
            Tokenizer.from_metadata(small.byte_level(pre=name))


@pytest.mark.parametrize(
    "name", ["nope", "gpt2", "GPT-2", " gpt-2", "gpt-2 phi-2", "llama\0bpe", "x" * 999]
)
def test_unknown_names_fail(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"is not known.*known are default, gpt-2"):
        Tokenizer.from_metadata(small.byte_level(pre=name))


def test_a_missing_name_fails_until_one_is_given() -> None:
    unnamed = small.byte_level()
    del unnamed["tokenizer.ggml.pre"]
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre is missing"):
        Tokenizer.from_metadata(unnamed)
    tokenizer = Tokenizer.from_metadata(unnamed, pre="smollm")
    assert tokenizer.pre == "smollm"
    assert tokenizer.encode("12", add_special=False) == [ord("1"), ord("2")]


def test_a_name_for_a_vocabulary_that_takes_none_is_refused() -> None:
    for metadata in (small.sentencepiece([("a", -1.0)]), small.wordpiece()):
        assert Tokenizer.from_metadata(metadata | {small.P + "pre": "default"}).pre is None
        with pytest.raises(TokenizerError, match="only 'gpt2' vocabularies take one"):
            Tokenizer.from_metadata(metadata, pre="gpt-2")


@pytest.mark.parametrize("name", sorted(DISTINCT.values()))
def test_time_is_linear_in_a_single_run(name: str) -> None:
    """Quadratic work on 100 kB would take minutes; the bound is far from what linear work takes."""
    started = time.perf_counter()
    units = (
        " ",
        "\n",
        "a",
        "A",
        "1",
        "中",
        "\u0301",
        "'",
        "\t \n",
        "a ",
        " \u00a0x",
        "<sentinel:1",
    )
    for unit in units:
        size = 100_000 // len(unit.encode())
        for tail in ("", "x", "!"):
            data = (unit * size + tail).encode()
            ends = _native.pretokenize(name, data)
            assert ends[-1] == len(data)
    assert time.perf_counter() - started < 60
