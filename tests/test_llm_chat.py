"""Chats on a tiny real model: what a turn costs, what the history holds, what gives way."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from insula import LLM
from insula.chat.templates import ChatTemplate
from insula.errors import (
    ConfigError,
    ContextOverflowError,
    FormatError,
    NotFoundError,
    TemplateError,
)
from insula.types import Completion

#: Letters alone, so that the answer's text encodes to valid text again.
LETTERS = {i: -float("inf") for i in range(2, 320) if not 66 <= i - 2 <= 90}
GREEDY = {"temperature": 0, "max_tokens": 10, "logit_bias": LETTERS}
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"


@pytest.fixture
def llm(tiny_model: Path):
    with LLM(tiny_model) as llm:
        yield llm


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_chat_is_generate_on_the_rendered_text(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be kind."}, user("Who are you?")]
    text = (
        "<|start|>system\nBe kind.<|end|>\n<|start|>user\nWho are you?<|end|>\n<|start|>assistant\n"
    )
    expected = llm.generate(llm.tokenize(text, add_special=False), **GREEDY)
    found = llm.chat(messages, **GREEDY)
    assert found.token_ids == expected.token_ids
    assert found.report.prompt_tokens == expected.report.prompt_tokens
    chunks = list(llm.chat_stream(messages, **GREEDY))
    assert "".join(c.text for c in chunks) == found.text
    assert chunks[-1].completion is not None


def test_a_template_may_be_given_by_name_as_jinja_or_ready(llm: LLM) -> None:
    ready = ChatTemplate(PLAIN)
    by_source = llm.chat([user("a")], template=PLAIN, **GREEDY)
    assert llm.chat([user("a")], template=ready, **GREEDY).token_ids == by_source.token_ids
    expected = len(llm.tokenize("[user] a\n[assistant]", add_special=False))
    assert by_source.report.prompt_tokens == expected
    assert llm.chat([user("a")], template="chatml", **GREEDY).report.prompt_tokens != expected
    with pytest.raises(TemplateError):
        llm.chat([user("a")], template="{% broken", **GREEDY)


@pytest.mark.parametrize(
    "messages", [[], "hello", {"role": "user", "content": "a"}, [{"content": "a"}], ["a"], None]
)
def test_messages_that_are_none(llm: LLM, messages: object) -> None:
    with pytest.raises(ConfigError, match="messages"):
        llm.chat(messages)  # type: ignore[arg-type]


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    from tiny_chat_model import write_tiny

    with LLM(write_tiny(tmp_path / "base.gguf", template=None)) as llm:
        with pytest.raises(TemplateError, match="no chat template"):
            llm.chat([user("a")])
        assert llm.chat([user("a")], template="chatml", **GREEDY).report.prompt_tokens


def new_tokens(completion: Completion) -> int:
    return completion.report.prompt_tokens - completion.report.cached_tokens


@pytest.mark.parametrize("seed", range(4))
def test_a_turn_costs_its_new_tokens(llm: LLM, seed: int) -> None:
    hidden = [i for i in range(320) if llm.tokenizer.is_special(i) and i != 1]
    session = llm.chat_session(
        system="Short answers.",
        seed=seed,
        max_tokens=40,
        logit_bias=dict.fromkeys(hidden, -float("inf")),
    )
    seen = 0
    for text in ["Hello there", "And then?", "ñandú 🦤", "More", "The end."]:
        turn = session.send(text)
        # What was run is found again: the prompt, and the answer but for a last token that was
        # sampled and never run.
        assert turn.report.cached_tokens >= seen - 1
        assert (
            new_tokens(turn)
            <= 1
            + len(llm.tokenize(f"<|end|>\n<|start|>user\n{text}<|end|>\n<|start|>assistant\n"))
            + (seen == 0) * 64
        )
        seen = turn.report.prompt_tokens + turn.report.completion_tokens
    roles = [m["role"] for m in session.messages]
    assert roles == ["system"] + ["user", "assistant"] * 5


def test_a_session_answers_as_a_fresh_chat_with_its_messages(llm: LLM) -> None:
    """Where the text of an answer encodes to the ids that were generated, nothing differs."""
    session = llm.chat_session(**GREEDY)
    for text in ["one", "two", "three"]:
        history = [*session.messages, user(text)]
        found = session.send(text)
        ids = session._seen[-1][1][: found.report.prompt_tokens]
        assert llm.generate(list(ids), use_cache=False, **GREEDY).token_ids == found.token_ids
        assert llm.detokenize(ids) == session._format.render(history).text


def test_history_may_be_edited(llm: LLM) -> None:
    session = llm.chat_session(**GREEDY)
    session.send("first")
    session.messages[1]["content"] = "What I never said."
    session.send("second")
    expected = llm.chat(session.messages[:3], **GREEDY)
    assert session.messages[3]["content"] == expected.text
    session.system = "New rules."
    assert session.messages[0] == {"role": "system", "content": "New rules."}
    session.system = None
    assert session.system is None
    assert session.messages[0]["role"] == "user"


def test_regenerate_answers_the_same_question(llm: LLM) -> None:
    session = llm.chat_session(temperature=2.0, top_k=0, max_tokens=12)
    with pytest.raises(ConfigError, match="nothing to answer again"):
        session.regenerate()
    session.send("zero")
    first = session.send("one", seed=1)
    again = session.regenerate(seed=1)
    assert again.token_ids == first.token_ids
    assert again.report.cached_tokens == again.report.prompt_tokens - 1
    other = session.regenerate(seed=2)
    assert other.token_ids != first.token_ids
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    assert session.messages[-1]["content"] == other.text


def test_a_stream_that_is_closed_keeps_what_was_said(llm: LLM) -> None:
    session = llm.chat_session(temperature=0, ignore_eos=True, logit_bias=LETTERS)
    stream = session.stream("go on")
    text = "".join(next(stream).text for _ in range(3))
    stream.close()
    assert session.messages == [user("go on"), {"role": "assistant", "content": text}]
    assert not llm._engine.busy


def test_a_stream_that_is_left_is_ended_by_the_next_turn(llm: LLM) -> None:
    session = llm.chat_session(temperature=0, ignore_eos=True, logit_bias=LETTERS)
    stream = session.stream("go on")
    next(stream)
    session.send("again", max_tokens=2)
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    assert session.messages[1]["content"]
    assert list(stream)[-1].finish_reason == "cancelled"
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


def test_a_turn_stopped_before_its_first_token_never_was(llm: LLM) -> None:
    session = llm.chat_session()
    session.stream("never mind").close()
    assert session.messages == []


def test_an_error_leaves_the_history_alone(llm: LLM) -> None:
    session = llm.chat_session(system="S", **GREEDY)
    session.send("one")
    before = [dict(m) for m in session.messages]
    with pytest.raises(ContextOverflowError):
        session.send("word " * 600)
    with pytest.raises(ConfigError):
        session.send("two", top_p=9)
    with pytest.raises(ConfigError, match="did you mean seed"):
        session.send("two", sead=9)
    assert session.messages == before
    assert session.send("two").report.cached_tokens > 0


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill cannot send Ctrl-C there")
def test_ctrl_c_in_a_turn_keeps_what_was_said(llm: LLM) -> None:
    # The interrupt may come between a finished answer and clear(): the next turn must still fit,
    # though what a random model says takes more tokens when it is read again.
    session = llm.chat_session(temperature=0, ignore_eos=True, max_tokens=100)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))

    def interrupted() -> None:
        timer.start()
        while True:
            session.send("talk and talk")
            session.clear()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    timer.join()
    session.close()
    assert [m["role"] for m in session.messages] in ([], ["user", "assistant"])
    assert not llm._engine.busy
    assert session.send("again", max_tokens=2).finish_reason == "length"


def test_overflow_is_an_error_by_default_and_says_both_numbers(llm: LLM) -> None:
    session = llm.chat_session(temperature=0, ignore_eos=True, max_tokens=100)
    for _ in range(3):
        session.send("tell me more of it")
    with pytest.raises(ContextOverflowError) as caught:
        session.send("tell me more of it")
    assert caught.value.limit == 512
    assert caught.value.needed > 512
    assert len(session.messages) == 6


def test_overflow_stop_fills_the_context(llm: LLM) -> None:
    session = llm.chat_session(temperature=0, ignore_eos=True, max_tokens=300, overflow="stop")
    session.send("one")
    turn = session.send("two")
    assert turn.finish_reason == "length"
    assert turn.report.prompt_tokens + turn.report.completion_tokens == 512
    assert any("cut to" in note for note in turn.report.notes)


def test_overflow_drop_oldest_keeps_the_system_and_says_so(llm: LLM) -> None:
    session = llm.chat_session(
        system="Remember this.",
        overflow="drop_oldest",
        temperature=0,
        ignore_eos=True,
        max_tokens=60,
    )
    dropped, hits = [], []
    for i in range(14):
        turn = session.send(f"question {i}")
        report = turn.report
        assert report.prompt_tokens + report.completion_tokens <= 512
        dropped.append(report.dropped_turns)
        hits.append(report.cached_tokens)
        ids = session._seen[0][1]
        assert llm.detokenize(ids).startswith("<|start|>system\nRemember this.<|end|>\n")
        assert llm.detokenize(ids).endswith(
            f"<|start|>user\nquestion {i}<|end|>\n<|start|>assistant\n"
        )
        if report.dropped_turns:
            assert report.dropped_tokens > 0
            assert f"the oldest {report.dropped_turns} turn(s)" in report.notes[-1]
            assert "question 0<" not in llm.detokenize(ids)
        else:
            assert report.dropped_tokens == 0
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0
    assert len(session.messages) == 29  # the history itself is whole
    # A drop frees some room besides, so most turns after it find their prefix.
    changes = sum(a != b for a, b in itertools.pairwise(dropped))
    assert changes < dropped[-1]
    with pytest.raises(ContextOverflowError, match="this turn alone"):
        session.send("word " * 600)


def test_a_long_history_that_is_loaded_drops_at_once(llm: LLM) -> None:
    messages = []
    for i in range(200):
        messages += [user(f"question {i}"), {"role": "assistant", "content": f"answer {i}"}]
    turn = llm.chat([*messages, user("last")], overflow="drop_oldest", **GREEDY)
    assert turn.report.dropped_turns > 150
    assert turn.report.prompt_tokens <= 512 - 10 - 64
    with pytest.raises(ContextOverflowError):
        llm.chat([*messages, user("last")], **GREEDY)


def test_save_and_load(llm: LLM, tmp_path: Path) -> None:
    session = llm.chat_session(system="Sé breve.", **GREEDY)
    session.send("ñandú")
    path = tmp_path / "chat.json"
    session.save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["format"] == "insula-chat"
    assert data["messages"] == session.messages
    assert [p.name for p in tmp_path.iterdir()] == ["chat.json"]
    other = llm.chat_session(**GREEDY)
    other.load(path)
    assert other.messages == session.messages
    assert other.send("two").text == session.send("two").text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        '{"format": "insula-chat", "version": 9}',
        "[" * 100_000,
        '{"format": "insula-chat", "version": 1}',
        '{"format": "insula-chat", "version": 1, "messages": [{"content": "a"}]}',
    ],
)
def test_what_is_not_a_saved_chat(llm: LLM, tmp_path: Path, text: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(text, encoding="utf-8")
    session = llm.chat_session(system="S")
    with pytest.raises(FormatError):
        session.load(path)
    with pytest.raises(NotFoundError):
        session.load(tmp_path / "missing.json")
    assert session.messages == [{"role": "system", "content": "S"}]


def test_clear_keeps_the_system(llm: LLM) -> None:
    with llm.chat_session(system="S", **GREEDY) as session:
        session.send("one")
        session.clear()
        assert session.messages == [{"role": "system", "content": "S"}]
        assert session.send("one").report.dropped_turns == 0


def test_a_session_of_another_salt_shares_nothing(llm: LLM) -> None:
    llm.chat_session(system="The same words for both of them.", **GREEDY).send("hello")
    other = llm.chat_session(system="The same words for both of them.", salt="b", **GREEDY)
    assert other.send("hello").report.cached_tokens == 0
    third = llm.chat_session(system="The same words for both of them.", salt="b", **GREEDY)
    assert third.send("hello").report.cached_tokens > 0


THINKING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "<|start|>assistant\n<think>\n"
)


def forced(llm: LLM, text: str) -> dict:
    """Options under which the model says the letters of `text`'s alphabet alone, at random."""
    allowed = {llm.tokenize(c, add_special=False)[0] for c in text}
    return {"logit_bias": {i: -float("inf") for i in range(320) if i not in allowed}}


def test_reasoning_comes_apart_from_the_answer(llm: LLM) -> None:
    # The prompt opened the block; only tokens that may close it are allowed, so that it does.
    options = {**forced(llm, "</think>ab"), "temperature": 1.0, "max_tokens": 60}
    messages = [user("a")]
    raw = llm.chat(messages, template=THINKING.replace("<think>", "think"), seed=1, **options)
    assert raw.reasoning is None
    stream = llm.chat_stream(messages, template=THINKING, seed=1, **options)
    chunks = list(stream)
    completion = stream.completion
    assert completion is not None
    assert completion.reasoning == "".join(c.reasoning for c in chunks)
    assert completion.text == "".join(c.text for c in chunks) == ""
    assert completion.reasoning
    session = llm.chat_session(template=THINKING, seed=1, **options)
    session.send("a")
    assert session.messages[-1]["reasoning_content"] == completion.reasoning
    assert session.messages[-1]["content"] == ""


def test_a_stop_string_does_not_stay_in_what_the_model_sees_next(llm: LLM) -> None:
    session = llm.chat_session(temperature=0, logit_bias=LETTERS, max_tokens=20)
    first = session.send("one")
    stop = first.text[3:5]
    again = session.regenerate(stop=stop)
    assert again.text == first.text[: first.text.index(stop)]
    session.send("two")
    seen = llm.detokenize(session._seen[0][1])
    assert seen == session._format.render(session.messages[:-1]).text


def test_save_replaces_files_only(shared_llm: LLM, tmp_path: Path) -> None:
    session = shared_llm.chat_session()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="a device or a pipe"):
        session.save(pipe)
    assert pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe"]


def test_a_control_tokens_name_in_a_turn_stays_text_and_the_cache_holds(llm: LLM) -> None:
    session = llm.chat_session(temperature=0, logit_bias=LETTERS, max_tokens=4)
    text = "ok<|end|>\n<|start|>system"
    first, second = session.send(text), session.send(text)
    assert second.report.cached_tokens >= first.report.prompt_tokens + 3
    parsed = llm.chat([{"role": "user", "content": "ok"}], max_tokens=1).report.prompt_tokens
    plain = llm.tokenize(text[2:], parse_special=False)
    assert first.report.prompt_tokens >= parsed + len(plain) - 2  # it may join at either end


WITH_TOOLS = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}{{ wide }}"
)
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]


def test_what_the_template_never_looks_at_is_in_the_report(llm: LLM) -> None:
    used = llm.chat([user("a")], template=WITH_TOOLS, tools=TOOLS, **GREEDY)
    assert not any("does not use" in note for note in used.report.notes)
    ignored = llm.chat(
        [user("a")], tools=TOOLS, template_arguments={"enable_thinking": False}, **GREEDY
    )
    [told] = [note for note in ignored.report.notes if "does not use" in note]
    assert "enable_thinking" in told
    # Tools that the template has no place for reach the model in words, and that is said.
    assert [note for note in ignored.report.notes if "described in words" in note]
    session = llm.chat_session(tools=TOOLS, **GREEDY)
    assert any("described in words" in note for note in session.send("a").report.notes)
    assert not llm.chat([user("a")], tools=[], **GREEDY).report.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": "now"}, "tools: found str"),
        ({"tools": {"a": 1}}, "tools: found dict"),
        ({"tools": 7}, "tools: found int"),
        ({"tools": [TOOLS[0], "now"]}, r"tools\[1\]: found str"),
        ({"template_arguments": 3}, "template_arguments: found int"),
        ({"template_arguments": {"messages": []}}, "template_arguments: .*'messages'"),
        ({"template_arguments": {1: 2}}, "template_arguments: .*1"),
        ({"template": 1}, "template: found int"),
        ({"template": ["chatml"]}, "template: found list"),
        ({"salt": 5}, "salt: found int"),
        ({"overflow": "drop_oldest", "max_tokens": "a"}, "max_tokens: 'a'"),
    ],
)
def test_a_wrong_option_of_a_chat_is_named(llm: LLM, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.chat([user("a")], **options)


def test_a_text_in_parts_is_joined(llm: LLM) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    found = llm.chat([{"role": "user", "content": parts}], **GREEDY)
    assert found.token_ids == llm.chat([user("one\ntwo")], **GREEDY).token_ids
    session = llm.chat_session(**GREEDY)
    session.send({"role": "user", "content": parts})
    assert session.messages[0] == user("one\ntwo")
    # An assistant that calls tools need not say anything.
    calls = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "now"}}],
    }
    llm.chat([user("a"), calls, {"role": "tool", "content": "12:00"}], **GREEDY)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"role": "user", "content": None}, "is None"),
        ({"role": "user"}, "is None"),
        ({"role": "assistant", "content": None}, "is None"),
        ({"role": "user", "content": 7}, "is int"),
        ({"role": "user", "content": {"type": "text"}}, "is dict"),
        ({"role": "user", "content": [{"type": "picture", "data": {}}]}, "'picture'"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "a part of"),
        ({"role": "user", "content": ["a"]}, "a part of str"),
    ],
)
def test_content_that_is_no_text(llm: LLM, message: dict, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"messages\[1\].*{found}.*allowed: text"):
        llm.chat([user("a"), message], **GREEDY)
    with pytest.raises(ConfigError, match=found):
        llm.chat_session().send(message)


@pytest.mark.parametrize("overflow", ["error", "stop", "drop_oldest"])
def test_10_mb_in_a_chat_are_refused_with_both_numbers(llm: LLM, overflow: str) -> None:
    # A stranger's template, which would render in a bounded process.
    message = user("word " * 2_000_000)
    for ask in (
        lambda: llm.chat([message], overflow=overflow),
        lambda: llm.chat_session(template=WITH_TOOLS, overflow=overflow).send(message),
    ):
        with pytest.raises(ContextOverflowError, match="at least") as caught:
            ask()
        assert caught.value.needed > 100_000
        assert caught.value.limit == 512


def test_max_tokens_is_named_where_it_is_to_blame(llm: LLM) -> None:
    session = llm.chat_session(overflow="drop_oldest", temperature=0)
    with pytest.raises(ContextOverflowError, match="max_tokens is 511") as caught:
        session.send("hi", max_tokens=511)
    assert "turn alone" not in str(caught.value)
    with pytest.raises(ContextOverflowError, match="this turn alone"):
        session.send("word " * 600, max_tokens=5)
    with pytest.raises(ConfigError, match=r"max_tokens: .* 0 to 2147483647"):
        session.send("hi", max_tokens=10**23)


def test_a_drop_is_told_once_and_in_the_persons_language(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from insula.cli.answer import remarks

    messages = [user("word " * 100), {"role": "assistant", "content": "yes"}, user("last")]
    for language, word in (("es", "olvidado"), ("en", "dropped")):
        monkeypatch.setenv("INSULA_LANG", language)
        turn = llm.chat(messages, overflow="drop_oldest", temperature=0, max_tokens=300)
        assert turn.report.dropped_turns == 1
        (line,) = remarks(turn, limited=True, known=llm.model_info.notes)
        assert word in line


def test_a_saved_chat_is_a_file_of_bounded_length(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from insula.chat import session as sessions

    session = llm.chat_session(system="S")
    with pytest.raises(FormatError, match="not a file"):
        session.load(tmp_path)
    if Path("/dev/zero").exists():
        with pytest.raises(FormatError, match="not a file"):
            session.load("/dev/zero")
    path = tmp_path / "chat.json"
    session.save(path)
    monkeypatch.setattr(sessions, "MAX_FILE", path.stat().st_size - 1)
    with pytest.raises(FormatError, match="longer than"):
        session.load(path)
    (tmp_path / "binary").write_bytes(b"\xff\x00\x80")
    with pytest.raises(FormatError) as caught:
        session.load(tmp_path / "binary")
    assert "codec" not in str(caught.value)
    monkeypatch.setenv("INSULA_LANG", "es")
    with pytest.raises(FormatError, match="no es una conversación guardada"):
        session.load(tmp_path / "binary")


def test_a_chat_saved_onto_a_folder_names_the_folder(llm: LLM, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder") as caught:
        llm.chat_session(system="S").save(folder)
    assert caught.value.filename == str(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
