"""GPT4All over Insula: what a program sees is what gpt4all 2.8.2 shows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compat.gpt4all_behaviour import play
from insula.compat.gpt4all import GPT4All
from insula.compat.gpt4all_prompts import PromptTemplate
from insula.errors import ConfigError, ContextOverflowError, TemplateError, UnsupportedError

GOLDEN = json.loads((Path(__file__).parent / "gpt4all_behaviour.json").read_text("utf-8"))
TURN = "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{1}<|im_end|>\n"


@pytest.fixture(scope="module")
def played(default_model: Path) -> dict[str, Any]:
    """Our answers to what the real package was asked."""
    with GPT4All(str(default_model), n_threads=2) as model:
        return play(model)


@pytest.mark.parametrize("key", list(GOLDEN["played"]))
def test_as_the_real_package(played: dict[str, Any], key: str) -> None:
    assert played[key] == GOLDEN["played"][key]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[GPT4All]:
    with GPT4All(
        tiny_model.name, model_path=tiny_model.parent, allow_download=False, n_ctx=256
    ) as model:
        yield model


def ask(model: GPT4All, prompt: str = "hello there", **options: Any) -> str:
    settings: dict[str, Any] = {"max_tokens": 12, "temp": 0}
    answer: str = model.generate(prompt, **(settings | options))
    return answer


def test_what_it_says_of_itself(model: GPT4All, tiny_model: Path) -> None:
    assert (model.backend, model.device, model.model_type) == ("cpu", None, None)
    assert model.config == {"path": str(tiny_model)}
    assert GPT4All.list_gpus() == []


def test_streaming_is_lazy_and_whole(model: GPT4All) -> None:
    stream = model.generate("hello there", max_tokens=12, temp=0, streaming=True)
    assert iter(stream) is stream
    assert "".join(stream) == ask(model)


def test_the_batch_size_changes_nothing(model: GPT4All) -> None:
    assert len({ask(model, n_batch=n) for n in (1, 8, 4096)}) == 1
    with pytest.raises(ConfigError, match="n_batch"):
        ask(model, n_batch=0)


@pytest.mark.parametrize(
    "options", [{"top_p": 7.0}, {"temp": -1.0}, {"repeat_penalty": 0.0}, {"max_tokens": -5}]
)
def test_values_out_of_range_are_errors(model: GPT4All, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        ask(model, **options)


def test_the_callback_sees_every_piece(model: GPT4All) -> None:
    seen: list[tuple[int, str]] = []

    def callback(token_id: int, text: str) -> bool:
        seen.append((token_id, text))
        return True

    text = ask(model, callback=callback)
    assert "".join(piece for _, piece in seen) == text
    assert all(isinstance(token_id, int) and token_id >= 0 for token_id, _ in seen)


def test_an_empty_prompt_goes_on_from_the_beginning(model: GPT4All) -> None:
    assert isinstance(ask(model, ""), str)


def test_a_gpu_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="device: found 'cuda'"):
        GPT4All("nothing", device="cuda")


def test_a_closed_model_says_so(tiny_model: Path) -> None:
    model = GPT4All(tiny_model.name, model_path=tiny_model.parent, allow_download=False)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        ask(model)


def test_too_long_a_prompt_has_both_numbers(model: GPT4All) -> None:
    with pytest.raises(ContextOverflowError) as info:
        ask(model, "a b c " * 300)
    assert info.value.limit == 256


def test_an_answer_ends_where_the_context_does(model: GPT4All) -> None:
    """max_tokens may exceed what is left: gpt4all's default of 200 often does."""
    seen: list[int] = []
    ask(model, "a b c", max_tokens=100_000, callback=lambda i, t: seen.append(i) or True)
    assert 0 < len(seen) <= 256


class TestSession:
    def test_history_and_its_copies(self, model: GPT4All) -> None:
        with model.chat_session(system_message="Be brief.") as session:
            assert session is model
            answer = ask(model, "hi")
            history = model.current_chat_session
            assert history == [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": answer},
            ]
            history[0]["content"] = "changed"
            again = model.current_chat_session
            assert again is not None
            assert again[0]["content"] == "Be brief."
        assert model.current_chat_session is None

    def test_old_and_new_arguments_say_the_same(self, model: GPT4All) -> None:
        with model.chat_session(system_prompt="Be brief."):
            old = ask(model, "hi")
        with model.chat_session(system_message="Be brief."):
            new = ask(model, "hi")
        assert old == new

    def test_a_jinja_template_by_either_name(self, model: GPT4All) -> None:
        source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
        with model.chat_session(chat_template=source):
            new = ask(model, "hi")
        with model.chat_session(None, source):
            old = ask(model, "hi")
        assert new == old == ask(model, "[user]hi[assistant]")

    def test_false_means_no_system_message(self, model: GPT4All) -> None:
        with model.chat_session(system_message=False):
            assert model.current_chat_session == [{"role": "system", "content": ""}]

    def test_the_second_turn_sees_the_first(self, model: GPT4All) -> None:
        for arguments in ({}, {"system_prompt": "", "prompt_template": TURN}):
            with model.chat_session(**arguments):
                ask(model, "first")
                second = ask(model, "second")
            with model.chat_session(**arguments):
                alone = ask(model, "second")
            assert second != alone

    @pytest.mark.parametrize("arguments", [{}, {"system_prompt": "", "prompt_template": TURN}])
    def test_a_turn_costs_its_new_tokens(
        self, model: GPT4All, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reports = []
        llm = model._open()
        stream = llm.stream

        def watched(*args: Any, **options: Any) -> Iterator[Any]:
            for chunk in stream(*args, **options):
                if chunk.completion is not None:
                    reports.append(chunk.completion.report)
                yield chunk

        monkeypatch.setattr(llm, "stream", watched)
        with model.chat_session(**arguments):
            ask(model, "one two three four five six seven eight nine ten " * 2)
            ask(model, "and?")
        first, second = reports
        # Whole pages are shared; the rest of the last one is computed again.
        assert second.cached_tokens >= first.prompt_tokens // 64 * 64
        assert second.cached_tokens > 0

    def test_a_streamed_turn_counts_when_it_ends(self, model: GPT4All) -> None:
        with model.chat_session():
            stream = model.generate("hi", max_tokens=12, temp=0, streaming=True)
            pieces = [next(stream)]
            history = model.current_chat_session
            assert history is not None
            assert history[-1] == {"role": "assistant", "content": pieces[0]}
            pieces += list(stream)
            history = model.current_chat_session
            assert history is not None
            assert history[-1]["content"] == "".join(pieces)

    def test_an_abandoned_stream_leaves_what_was_said(self, model: GPT4All) -> None:
        with model.chat_session():
            stream = model.generate("hi", max_tokens=60, temp=0, streaming=True)
            piece = next(stream)
            stream.close()
            assert ask(model, "go on") is not None
            history = model.current_chat_session
            assert history is not None
            assert history[2] == {"role": "assistant", "content": piece}

    def test_a_turn_that_failed_is_gone(self, model: GPT4All) -> None:
        with model.chat_session():
            before = model.current_chat_session
            with pytest.raises(ContextOverflowError):
                ask(model, "a b c " * 300)
            assert model.current_chat_session == before
            ask(model, "hi")

    def test_contradictions_are_errors(self, model: GPT4All) -> None:
        jinja = "{{ messages[0].content }}"
        for arguments, named in (
            ({"prompt_template": TURN, "chat_template": jinja}, "chat_template"),
            ({"prompt_template": jinja, "chat_template": jinja}, "chat_template"),
            ({"system_prompt": "a", "system_message": "b"}, "system_message"),
        ):
            session = model.chat_session(**arguments)
            with pytest.raises(ValueError, match=named), session:
                pass
            assert model.current_chat_session is None

    def test_a_broken_template_is_an_error_of_its_own(self, model: GPT4All) -> None:
        with (
            model.chat_session(chat_template="{{ messages[99].content.nothing }}"),
            pytest.raises(TemplateError),
        ):
            ask(model)

    def test_a_list_prompt_template_is_used(
        self, model: GPT4All, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(model.config, "promptTemplate", "U: {0}\nA: {1}\n")
        monkeypatch.setitem(model.config, "systemPrompt", "S\n")
        with model.chat_session():
            assert model.current_chat_session == [{"role": "system", "content": "S\n"}]
            assert ask(model, "hi") == ask_alone(model, "S\n", "U: ", "hi", "\nA: ")

    def test_without_any_template_alpacas_is_taken_aloud(
        self, model: GPT4All, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model._open().tokenizer, "chat_template", None)
        with contextlib.ExitStack() as stack:
            with pytest.warns(DeprecationWarning, match="Alpaca") as caught:
                stack.enter_context(model.chat_session())
            expected = ask_alone(model, "### Human:\n", "hi", "\n\n### Assistant:\n")
            assert ask(model, "hi") == expected
        assert len(caught) == 1


def ask_alone(model: GPT4All, *parts: str) -> str:
    """The same ids without a session's bookkeeping: each part encoded apart, as gpt4all does."""
    llm = model._open()
    ids = [i for part in parts for i in llm.tokenizer.encode(part, add_special=False)]
    if llm.tokenizer.add_bos:
        ids.insert(0, llm.tokenizer.bos_id)
    completion = llm.generate(
        ids, max_tokens=12, temperature=0, repeat_penalty=1.18, repeat_last_n=64
    )
    return completion.text


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{0}", ("", "", "\n\n")),
        ("a{0}b", ("a", "b", "\n\n")),
        (TURN, ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n")),
        ("a{{x}}{0}b{1}", ("a{x}", "b", "")),
    ],
)
def test_prompt_templates(template: str, parts: tuple[str, str, str]) -> None:
    parsed = PromptTemplate.parse(template)
    assert (parsed.before, parsed.between, parsed.after) == parts


@pytest.mark.parametrize("template", ["", "no place", "%1", "{2}", "{name}", "{", "{1} only"])
def test_prompt_templates_that_cannot_be(template: str) -> None:
    with pytest.raises(ValueError, match=r"[Tt]emplate"):
        PromptTemplate.parse(template)


@pytest.mark.parametrize("name", [None, 7, b"a"])
def test_a_model_name_of_another_type(name) -> None:
    with pytest.raises(ConfigError, match="model_name"):
        GPT4All(name)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (None, {}, "prompt: found NoneType"),
        ("a", {"max_tokens": "a"}, "max_tokens: 'a'"),
        ("a", {"n_batch": "a"}, "n_batch: found 'a'"),
        ("a", {"callback": None}, "callback: found None"),
        ("a", {"streaming": True, "top_p": 9}, "top_p: 9"),
    ],
)
def test_values_of_another_type_are_errors_at_once(
    model: GPT4All, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model.generate(prompt, **options)
