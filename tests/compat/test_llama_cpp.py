"""Llama over Insula: what a program sees is what llama-cpp-python 0.3.36 shows, or an error."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compat.llama_cpp_behaviour import MESSAGES, PROMPT, play
from insula import LLM
from insula.compat import llama_cpp
from insula.compat.llama_cpp import Llama, LogitsProcessorList
from insula.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from insula.errors import ContextOverflowError, NotFoundError, UnsupportedError
from tiny_chat_model import write_tiny
from tiny_encoder import write_encoder

GOLDEN = json.loads((Path(__file__).parent / "llama_cpp_behaviour.json").read_text("utf-8"))
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 10}


@pytest.fixture(scope="module")
def played(tiny_model: Path) -> dict[str, Any]:
    """Our answers to what the real package was asked."""
    answers: dict[str, Any] = json.loads(json.dumps(play(llama_cpp, tiny_model)))
    return answers


@pytest.mark.parametrize("key", list(GOLDEN["played"]))
def test_as_the_real_package(played: dict[str, Any], key: str) -> None:
    assert_alike(played[key], GOLDEN["played"][key])


def assert_alike(mine: Any, theirs: Any) -> None:
    """Equal, but for numbers, which two engines round each in its way."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            assert_alike(mine[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert_alike(one, other)
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, abs=5e-3)
    else:
        assert mine == theirs


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[Llama]:
    with Llama(str(tiny_model), n_ctx=256, verbose=False) as model:
        yield model


@pytest.fixture(scope="module")
def stepping(tiny_model: Path) -> Iterator[Llama]:
    with Llama(str(tiny_model), n_ctx=256, verbose=False, logits_all=True) as model:
        yield model


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.2, "top_k": 0, "repeat_penalty": 1.3, "seed": 7},
        {"temperature": 1.0, "mirostat_mode": 2, "seed": 9},
        {"temperature": -1.0, "seed": 11},
        {"temperature": 1.0, "seed": 5, "stop": ["a", "e"], "logprobs": 2},
    ],
)
def test_step_by_step_is_what_the_engine_does(
    llm: Llama, stepping: Llama, options: dict[str, Any]
) -> None:
    """logits_all runs in Python, token by token: to the same tokens and probabilities."""
    fast: Any = llm(PROMPT, max_tokens=24, **options)
    slow: Any = stepping(PROMPT, max_tokens=24, **options)
    assert fast["choices"] == slow["choices"]
    assert fast["usage"] == slow["usage"]


def test_echoed_log_probabilities_are_the_models_own(llm: Llama, tiny_model: Path) -> None:
    ids = llm.tokenize(PROMPT.encode())
    answer: Any = llm(PROMPT, max_tokens=2, temperature=0, echo=True, logprobs=1)
    table = answer["choices"][0]["logprobs"]
    assert len(table["tokens"]) == len(ids) + 2
    assert table["token_logprobs"][0] is None
    with LLM(tiny_model, n_ctx=256) as plain:
        expected = Llama.logits_to_logprobs(plain.logits(ids))
    for t, token_id in enumerate(ids[1:]):
        assert table["token_logprobs"][t + 1] == pytest.approx(expected[t][token_id], abs=1e-4)


def test_a_stream_without_stop_strings_is_the_whole(llm: Llama) -> None:
    chunks: Any = list(llm(PROMPT, max_tokens=20, seed=4, stream=True))  # type: ignore[arg-type]
    whole: Any = llm(PROMPT, max_tokens=20, seed=4)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == whole["choices"][0]["text"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_seeds(tiny_model: Path, llm: Llama) -> None:
    def texts(seed: int) -> list[str]:
        with Llama(str(tiny_model), n_ctx=256, seed=seed, verbose=False) as model:
            answers: Any = [model(PROMPT, temperature=1.5, max_tokens=12) for _ in range(2)]
            return [answer["choices"][0]["text"] for answer in answers]

    first = texts(7)
    assert first == texts(7)
    assert first[0] != first[1]
    assert texts(-1) != texts(-1)


def test_a_prompt_that_does_not_fit_says_both_numbers(llm: Llama) -> None:
    with pytest.raises(ContextOverflowError, match=r"exceed context window of 256"):
        llm("a b c " * 200)


def test_kept_states(stepping: Llama) -> None:
    stepping.reset()
    stepping.eval([5, 6, 7])
    state = stepping.save_state()
    expected = stepping.sample(temp=0)
    stepping.eval([8, 9])
    assert stepping.n_tokens == 5
    stepping.load_state(state)
    assert stepping.eval_tokens == llama_deque([5, 6, 7])
    assert stepping.sample(temp=0) == expected
    assert np.array_equal(stepping.scores[:3], state.scores)
    stepping.n_tokens = 1
    assert stepping.n_tokens == 1


def llama_deque(ids: list[int]) -> Any:
    from collections import deque

    return deque(ids)


def test_tokens_sent_into_a_generator_are_evaluated(stepping: Llama) -> None:
    ids = stepping.tokenize(PROMPT.encode())
    stream = stepping.generate(ids, temp=0)
    first = next(stream)
    after = stream.send([40, 41])
    stepping.reset()
    stepping.eval([*ids, first, 40, 41])
    assert stepping.sample(temp=0) == after


def test_logits_without_logits_all(llm: Llama, stepping: Llama) -> None:
    for model in (llm, stepping):
        model.reset()
        model.eval([5, 6, 7])
    [last] = llm.eval_logits
    assert np.array_equal(np.array(last, np.float32), stepping.scores[2])
    assert not llm.scores.any()
    with pytest.raises(ValueError, match="logits_all keeps them all"):
        llm.sample(idx=0)


def test_speculation_changes_nothing(tiny_model: Path, llm: Llama) -> None:
    with Llama(
        str(tiny_model),
        n_ctx=256,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4),
        verbose=False,
    ) as model:
        prompt = "one two three " * 4
        answers: Any = [m(prompt, max_tokens=30, temperature=0) for m in (llm, model)]
    assert answers[0]["choices"] == answers[1]["choices"]


class TestWhatIsNotHere:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lora_path": "a.gguf"}, "lora_path"),
            ({"rope_freq_base": 5e5}, "rope_freq_base"),
            ({"yarn_ext_factor": 1.0}, "yarn_ext_factor"),
            ({"kv_overrides": {"a": 1}}, "kv_overrides"),
            ({"type_k": 2, "type_v": 2}, "type_k"),
            ({"type_k": 8}, "type_k"),
            ({"draft_model": object()}, "draft_model"),
            ({"chat_format": "functionary"}, "chat_format: found 'functionary'; allowed"),
            ({"n_ctxx": 5}, "did you mean n_ctx"),
            ({"n_batch": 0}, "n_batch"),
        ],
    )
    def test_parameters_that_would_change_results(
        self, tiny_model: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            Llama(str(tiny_model), verbose=False, **options)

    @pytest.mark.parametrize(
        "options",
        [
            {"use_mlock": True},
            {"flash_attn": True},
            {"numa": 1},
            {"n_threads": 1, "n_threads_batch": 2},
            {"f16_kv": False},
            {"rope_freq_base": 10000.0},
        ],
    )
    def test_parameters_without_effect_are_said(
        self, tiny_model: Path, options: dict[str, Any]
    ) -> None:
        with (
            pytest.warns(UserWarning, match="has no effect") as caught,
            Llama(str(tiny_model), n_ctx=64, verbose=False, **options) as model,
        ):
            assert any("has no effect" in line for line in model.notes)
        assert caught[0].filename == __file__

    def test_defaults_say_nothing(self, tiny_model: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Llama(str(tiny_model), n_ctx=64) as model:
                assert model.notes == ()

    @pytest.mark.parametrize(
        "options",
        [
            {"suffix": "x"},
            {"grammar": object()},
            {"mirostat_mode": 1},
            {"temperature": float("nan")},
            {"top_p": 7.0},
            {"logit_bias": {999: 1.0}},
        ],
    )
    def test_options_of_a_completion(self, llm: Llama, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            llm(PROMPT, **options)

    def test_options_without_effect_are_said(self, llm: Llama) -> None:
        with pytest.warns(UserWarning, match="tfs_z has no effect"):
            llm(PROMPT, max_tokens=1, tfs_z=0.5)
        with pytest.warns(UserWarning, match="LlamaRAMCache stays empty"):
            llm.set_cache(llama_cpp.LlamaCache(capacity_bytes=1 << 20))
        llm.set_cache(None)

    def test_a_gpu_that_is_not_here_is_said(self, tiny_model: Path) -> None:
        from insula.engine.backends.llamacpp_devices import gpus

        if gpus():
            pytest.skip("there is a GPU here")
        with (
            pytest.warns(UserWarning, match="n_gpu_layers=-1 has no effect"),
            Llama(str(tiny_model), n_ctx=64, n_gpu_layers=-1, verbose=False) as model,
        ):
            assert model.n_ctx() == 64

    def test_a_model_that_generates_gives_no_embeddings(self, tiny_model: Path) -> None:
        with Llama(str(tiny_model), n_ctx=64, embedding=True, verbose=False) as model:
            for call in (model.embed, model.create_embedding):
                with pytest.raises(ValueError, match="gives no embeddings"):
                    call("hello")

    def test_embeddings_are_the_front_doors(self, tmp_path: Path) -> None:
        path = write_encoder(tmp_path / "encoder.gguf")
        texts = ["the island", "el mar"]
        with LLM(path) as llm:
            wanted = llm.embed(texts).vectors
        with Llama(str(path), embedding=True, verbose=False) as model:
            one = model.embed(texts[0])
            np.testing.assert_array_equal(one, wanted[0])
            vectors, n_tokens = model.embed(texts, normalize=True, return_count=True)
            unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
            np.testing.assert_allclose(vectors, unit, rtol=1e-6)
            answer = model.create_embedding(texts)
            assert [row["embedding"] for row in answer["data"]] == wanted.tolist()
            assert answer["usage"]["prompt_tokens"] == n_tokens > 0

    def test_a_processor_that_gives_something_else(self, llm: Llama) -> None:
        wrong = LogitsProcessorList([lambda ids, scores: scores[:3]])
        with pytest.raises(ValueError, match=r"logits_processor: gave shape \(3,\)"):
            llm(PROMPT, logits_processor=wrong, max_tokens=2)

    def test_a_backend_without_logits_names_itself(self, tiny_model: Path) -> None:
        pytest.importorskip("xllamacpp", reason="the llamacpp extra is not installed")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("INSULA_ENGINE", "llamacpp")
            model = Llama(str(tiny_model), n_ctx=64, verbose=False)
        with model:
            answer: Any = model(PROMPT, **GREEDY)
            assert 0 < answer["usage"]["completion_tokens"] <= 10
            with pytest.raises(ValueError, match="llamacpp backend has no logits") as info:
                model.eval([1, 2])
        assert isinstance(info.value, UnsupportedError)


def test_a_missing_file_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.gguf") as info:
        Llama(str(tmp_path / "none.gguf"))
    assert isinstance(info.value, NotFoundError)


def test_a_closed_model_says_so(tiny_model: Path) -> None:
    model = Llama(str(tiny_model), n_ctx=64, verbose=False)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model("hi")


def test_n_ctx_0_is_the_models(tiny_model: Path) -> None:
    with Llama(str(tiny_model), n_ctx=0, verbose=False) as model:
        assert model.n_ctx() == 512


def test_a_model_without_a_template_takes_llama_2s(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "bare.gguf", template=None)
    with (
        pytest.warns(UserWarning, match="chat_format llama-2"),
        Llama(str(path), n_ctx=64, verbose=False) as model,
    ):
        assert model.chat_format == "llama-2"


def test_formats_by_the_originals_names(tiny_model: Path) -> None:
    with Llama(str(tiny_model), n_ctx=256, chat_format="mistral-instruct", verbose=False) as model:
        answer: Any = model.create_chat_completion(
            [{"role": "user", "content": "hi"}], max_tokens=3
        )
        assert answer["choices"][0]["message"]["role"] == "assistant"


def test_tools_reach_the_template(tmp_path: Path) -> None:
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{{ messages[0].content }}"
    )
    path = write_tiny(tmp_path / "tools.gguf", template=template)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    with Llama(str(path), n_ctx=64, verbose=False) as model:
        ask: Any = model.create_chat_completion
        messages = [{"role": "user", "content": "hi"}]
        bare = ask(messages, max_tokens=1)["usage"]["prompt_tokens"]
        for given in ({"tools": [tool]}, {"functions": [tool["function"]]}):
            asked = ask(messages, max_tokens=1, **given)["usage"]["prompt_tokens"]
            assert asked > bare
            none = ask(messages, max_tokens=1, tool_choice="none", **given)
            assert none["usage"]["prompt_tokens"] == bare


def test_a_chat_handler_is_called_with_everything(tiny_model: Path) -> None:
    def handler(*, llama: Llama, messages: Any, stop: Any, **options: Any) -> Any:
        return {"content": messages[0]["content"], "stop": stop, "names": sorted(options)}

    with Llama(str(tiny_model), n_ctx=64, chat_handler=handler, verbose=False) as model:
        answer: Any = model.create_chat_completion(MESSAGES, stop=["x"])
    assert answer["content"] == "Be brief."
    assert answer["stop"] == ["x"]
    assert {"tools", "temperature", "top_logprobs"} <= set(answer["names"])


def test_openai_types_need_the_package(llm: Llama) -> None:
    try:
        from openai.types.chat import ChatCompletion
    except ImportError:
        with pytest.raises(ImportError, match="pip install openai"):
            llm.create_chat_completion_openai_v1(MESSAGES)
        return
    answer = llm.create_chat_completion_openai_v1(MESSAGES, max_tokens=3)
    assert isinstance(answer, ChatCompletion)
    chunks = list(llm.create_chat_completion_openai_v1(MESSAGES, max_tokens=3, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
