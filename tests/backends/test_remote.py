"""The remote backend against a real server on the loopback, which runs the tests' tiny model."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.openai_server import OpenAIServer, answer, drip, hang, say
from insula import LLM
from insula.engine.backends.remote_http import parse_address
from insula.errors import ConfigError, EngineError, RemoteError, UnsupportedError

PLAIN: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "seed": 1}
MESSAGES = [{"role": "user", "content": "hello there"}]
KEY = "sk-a-very-secret-key"


@pytest.fixture
def server(shared_llm: LLM) -> Iterator[OpenAIServer]:
    with OpenAIServer(shared_llm) as server:
        yield server


@pytest.fixture
def remote(server: OpenAIServer) -> Iterator[LLM]:
    with LLM(f"{server.model}#tiny", timeout=60) as llm:
        yield llm


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def test_it_says_what_it_is(server: OpenAIServer, remote: LLM) -> None:
    info = remote.model_info
    assert (info.engine, info.name, info.path) == ("remote", "tiny", server.base)
    assert info.n_ctx == remote.n_ctx == server.llm.n_ctx
    assert "address" in info.engine_reason


def test_its_answers_are_the_models(server: OpenAIServer, remote: LLM) -> None:
    for options in (PLAIN, {"temperature": 1.0, "seed": 7, "max_tokens": 20, "top_p": 0.9}):
        # What is left at our default is the server's own: here the same.
        ours = server.llm.generate("the quick brown", **options)
        theirs = remote.generate("the quick brown", **options)
        assert (theirs.text, theirs.finish_reason) == (ours.text, ours.finish_reason)
        assert theirs.report.prompt_tokens == ours.report.prompt_tokens
        assert theirs.report.completion_tokens == ours.report.completion_tokens
        assert (theirs.report.engine, theirs.report.seed) == ("remote", options["seed"])
        assert theirs.token_ids == ()


def test_ids_and_lists(server: OpenAIServer, remote: LLM) -> None:
    ids = server.llm.tokenize("the quick brown")
    expected = server.llm.generate(ids, **PLAIN).text
    assert remote.generate(ids, **PLAIN).text == expected
    assert server.bodies[-1]["prompt"] == ids
    both = remote.generate(["the quick brown", "hello"], **PLAIN)
    assert both[0].text == expected
    assert both[1].text == server.llm.generate("hello", **PLAIN).text
    assert [c.text for c in remote.generate("hello", n=2, **PLAIN)] == [both[1].text] * 2


def test_streams(remote: LLM) -> None:
    whole = remote.generate("the quick brown", **PLAIN)
    chunks = list(remote.stream("the quick brown", **PLAIN))
    assert len(chunks) > 3
    assert "".join(c.text for c in chunks) == whole.text
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.text == whole.text


def test_chats(server: OpenAIServer, remote: LLM) -> None:
    ours = server.llm.chat(MESSAGES, **PLAIN)
    assert remote.chat(MESSAGES, **PLAIN).text == ours.text
    text = "".join(chunk.text for chunk in remote.chat_stream(MESSAGES, **PLAIN))
    assert text == ours.text
    assert server.bodies[-1]["messages"] == MESSAGES


def test_sessions(server: OpenAIServer, remote: LLM) -> None:
    with (
        server.llm.chat_session(system="Be brief.", **PLAIN) as ours,
        remote.chat_session(system="Be brief.", **PLAIN) as theirs,
    ):
        for question in ("hello", "and then?"):
            assert theirs.send(question).text == ours.send(question).text
        assert theirs.messages == ours.messages
        assert theirs.regenerate(seed=1).text == ours.regenerate(seed=1).text
        server.faults.append(answer(500, {}))
        before = list(theirs.messages)
        with pytest.raises(RemoteError):
            theirs.send("more")
        assert theirs.messages == before
        server.faults.append(drip("more "))
        stream = theirs.stream("on")
        next(stream)
        stream.close()
        assert theirs.messages[-1]["content"].startswith("more ")


def test_log_probabilities(server: OpenAIServer, remote: LLM) -> None:
    ours = server.llm.generate("the quick brown", logprobs=2, **PLAIN).logprobs
    theirs = remote.generate("the quick brown", logprobs=2, **PLAIN).logprobs
    chatted = remote.chat(MESSAGES, logprobs=1, **PLAIN).logprobs
    assert ours is not None
    assert theirs is not None
    assert [e.logprob for e in theirs] == [e.logprob for e in ours]
    expected = server.llm.chat(MESSAGES, logprobs=1, **PLAIN).logprobs
    assert chatted is not None
    assert expected is not None
    assert [(e.token, e.logprob) for e in chatted] == [(e.token, e.logprob) for e in expected]
    assert {e.token_id for e in chatted} == {-1}
    assert not any(math.isnan(e.logprob) for e in chatted)


def test_reasoning_comes_apart(server: OpenAIServer, remote: LLM) -> None:
    server.faults.append(
        say(
            {"choices": [{"delta": {"role": "assistant", "content": None}}]},
            {"choices": [{"delta": {"reasoning_content": "hm "}}]},
            {"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]},
        )
    )
    answered = remote.chat(MESSAGES, **PLAIN)
    assert (answered.reasoning, answered.text) == ("hm ", "yes")
    assert "the server did not count the tokens" in answered.report.notes


class TestOptions:
    def test_openais_are_sent(self, server: OpenAIServer, remote: LLM) -> None:
        remote.generate("a", stop=["x"], logit_bias={5: -math.inf}, presence_penalty=0.5, **PLAIN)
        sent = server.bodies[-1]
        assert sent["stop"] == ["x"]
        assert sent["logit_bias"] == {"5": -100.0}
        assert sent["presence_penalty"] == 0.5
        assert (sent["model"], sent["max_tokens"], sent["seed"]) == ("tiny", 12, 1)
        assert "top_k" not in sent

    def test_the_others_are_sent_and_said(self, server: OpenAIServer, remote: LLM) -> None:
        report = remote.generate("a", max_tokens=2, seed=1, top_k=3, repeat_penalty=1.2).report
        assert server.bodies[-1]["top_k"] == 3
        assert any("top_k, repeat_penalty" in line for line in report.notes)
        assert any("own default was used for min_p" in line for line in report.notes)

    @pytest.mark.parametrize(
        "options", [{"mirostat": 2}, {"dry_multiplier": 0.5}, {"samplers": ("top_k",)}]
    )
    def test_what_no_server_takes(self, remote: LLM, options: dict[str, Any]) -> None:
        with pytest.raises(UnsupportedError, match="remote backend cannot take") as info:
            remote.generate("a", max_tokens=2, **options)
        assert info.value.backend == "remote"

    def test_values_are_checked_here(self, remote: LLM) -> None:
        with pytest.raises(ConfigError, match="top_p"):
            remote.generate("a", top_p=3.0)
        with pytest.raises(ConfigError, match="did you mean temperature"):
            remote.chat(MESSAGES, temperatur=1)


def test_a_cache_folder_that_cannot_be_had_is_said(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INSULA_CACHE_DIR", str(tmp_path))
    with LLM(server.model) as llm:
        notes = llm.generate("a", **PLAIN).report.notes
    assert any("the remote engine has no cache_dir" in line for line in notes)


def test_messages_that_json_cannot_hold(remote: LLM) -> None:
    for messages in ([{"role": "user", "content": "a", "extra": b"b"}], "text", [{"content": "a"}]):
        with pytest.raises(ConfigError, match="messages"):
            remote.chat(messages, **PLAIN)  # type: ignore[arg-type]


class TestWhatNeedsAVocabulary:
    def test_names_the_backend(self, remote: LLM) -> None:
        calls = [
            lambda: remote.tokenizer,
            lambda: remote.tokenize("a"),
            lambda: remote.detokenize([1]),
            lambda: remote.logits([1, 2]),
            lambda: remote.perplexity("hello there"),
            lambda: remote.generate("a", overflow="stop", **PLAIN),
            lambda: remote.chat_session(template="chatml"),
            lambda: remote.chat_session(overflow="drop_oldest"),
            lambda: remote.chat(MESSAGES, template="chatml", **PLAIN),
            lambda: remote.chat(MESSAGES, overflow="drop_oldest", **PLAIN),
            lambda: remote.chat(MESSAGES, tools=[{"type": "function"}], **PLAIN),
        ]
        for call in calls:
            with pytest.raises(UnsupportedError, match="the remote backend") as info:
                call()
            assert info.value.backend == "remote"

    def test_options_of_loading(self, server: OpenAIServer) -> None:
        options: list[dict[str, Any]] = [{"n_ctx": 64}, {"speculate": "ngram"}, {"gpu_layers": 1}]
        for option in options:
            with pytest.raises(UnsupportedError, match=f"cannot take {next(iter(option))}"):
                LLM(server.model, **option)


class TestAddresses:
    @pytest.mark.parametrize(
        "name", ["remote:", "remote:localhost:80", "remote:ftp://a/v1", "remote:http://a:x/"]
    )
    def test_malformed(self, name: str) -> None:
        with pytest.raises(ConfigError, match="allowed is one such as remote:http"):
            parse_address(name)

    @pytest.mark.parametrize("rest", ["u:geheim@h/v1", "h/v1?key=geheim"])
    def test_a_key_in_it_is_refused_and_not_shown(self, rest: str) -> None:
        with pytest.raises(ConfigError, match="api_key") as info:
            parse_address(f"remote:http://{rest}")
        assert "geheim" not in str(info.value)

    def test_this_machine_or_another(self) -> None:
        for host, local in (("127.0.0.1", True), ("[::1]:8", True), ("localhost", True)):
            assert parse_address(f"remote:http://{host}/v1").local is local
        assert not parse_address("remote:http://10.0.0.1/v1").local

    def test_offline_means_this_machine_alone(
        self, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("INSULA_OFFLINE", "1")
        with pytest.raises(UnsupportedError, match="INSULA_OFFLINE"):
            LLM("remote:http://192.0.2.1/v1#m")
        LLM(server.model).close()

    def test_a_proxy_has_no_part_in_talking_to_this_machine(
        self, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with LLM(server.model) as llm:
            assert llm.generate("a", **PLAIN).report.completion_tokens > 0

    def test_for_the_remote_engine_alone(self, server: OpenAIServer, tiny_model: Any) -> None:
        with pytest.raises(ConfigError, match="remote engine alone"):
            LLM(server.model, engine="native")
        with pytest.raises(UnsupportedError, match="remote backend cannot run a GGUF file"):
            LLM(tiny_model, engine="remote")
        with pytest.raises(ConfigError, match="api_key: is for a remote server"):
            LLM(tiny_model, api_key=KEY)


class TestModels:
    def test_the_only_one_needs_no_name(self, server: OpenAIServer) -> None:
        with LLM(server.model) as llm:
            assert llm.model_info.name == "tiny"

    def test_several_do(self, server: OpenAIServer) -> None:
        server.models = [{"id": "one"}, {"id": "two"}]
        with pytest.raises(ConfigError, match="has 2 models; name one after a #: one, two"):
            LLM(server.model)
        with pytest.raises(ConfigError, match="no model 'three'; it has: one, two"):
            LLM(f"{server.model}#three")
        with LLM(f"{server.model}#two") as llm:
            assert llm.n_ctx == 0
            assert any("how long its context" in note for note in llm.model_info.notes)

    def test_a_server_that_lists_none(self, server: OpenAIServer) -> None:
        base = server.model.replace("/v1", "/v2")
        with pytest.raises(RemoteError, match="no route /v2/models") as info:
            LLM(base)
        assert info.value.status == 404
        with LLM(f"{base}#tiny") as llm:
            assert any("not checked" in note for note in llm.model_info.notes)


class TestKeys:
    def test_are_sent_as_a_bearer(self, shared_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        with OpenAIServer(shared_llm, key=KEY) as server:
            with LLM(server.model, api_key=KEY) as llm:
                llm.generate("a", **PLAIN)
            assert set(server.keys) == {f"Bearer {KEY}"}
            monkeypatch.setenv("INSULA_REMOTE_API_KEY", KEY)
            LLM(server.model).close()

    def test_a_wrong_one_is_refused_and_never_shown(self, shared_llm: LLM) -> None:
        wrong = "sk-wrong-but-secret"
        with OpenAIServer(shared_llm, key=KEY) as server:
            with pytest.raises(
                RemoteError, match=r"refused the key: wrong key: Bearer \*\*\*"
            ) as info:
                LLM(server.model, api_key=wrong)
            assert info.value.status == 401
            assert wrong not in repr(info.value) + str(info.value.__cause__)
            with pytest.raises(RemoteError, match="without a key"):
                LLM(server.model)

    def test_one_that_no_header_can_hold(self, server: OpenAIServer) -> None:
        with pytest.raises(ConfigError, match="api_key: has characters") as info:
            LLM(server.model, api_key="sk\nsecret")
        assert "secret" not in str(info.value)

    def test_settings_do_not_show_it(self) -> None:
        from insula.config import settings

        assert KEY not in repr(settings({"INSULA_REMOTE_API_KEY": KEY}))


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "said", "message", "retryable"),
        [
            (400, {"error": {"message": "min_p is unknown"}}, "refused the request.*min_p", False),
            (404, {"detail": "no such model"}, "is not there.*no such model", False),
            (429, {"error": "slow down"}, "is busy.*slow down.*wait 3 s", True),
            (500, b"<html>oh</html>", "failed \\(500\\)", True),
            (503, {"message": "loading"}, "is busy \\(503\\).*loading", True),
            (302, b"", "redirects elsewhere", False),
        ],
    )
    def test_a_status(
        self,
        server: OpenAIServer,
        remote: LLM,
        status: int,
        said: Any,
        message: str,
        retryable: bool,
    ) -> None:
        headers = {"Retry-After": "3", "Location": "http://192.0.2.1/"}
        server.faults.append(answer(status, said, headers))
        with pytest.raises(RemoteError, match=message) as info:
            remote.generate("a", **PLAIN)
        assert (info.value.status, info.value.retryable) == (status, retryable)
        assert info.value.retry_after == (3.0 if status in (429, 500, 503) else None)
        assert remote.generate("a", **PLAIN).report.completion_tokens > 0  # and it goes on

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (say(piece("half"), end=False), "ended before the answer did.*4 characters"),
            (say(b"{not json"), "answered '{not json'"),
            (say(b"[1, 2]"), "not the JSON that the route promises"),
            (say(b"[" * 100_000), "not the JSON"),
            (say({"choices": [{"text": 5}]}), "no piece of an answer"),
            (say({"choices": "text"}), "no piece of an answer"),
            (say({"error": {"message": "out of memory"}}), "ended the answer: out of memory"),
            (answer(200, {"choices": []}), "event stream was asked for"),
            (say(b"x" * (17 << 20)), "event longer than 16 MiB"),
        ],
    )
    def test_an_answer_that_is_none(
        self, server: OpenAIServer, remote: LLM, fault: Any, message: str
    ) -> None:
        server.faults.append(fault)
        with pytest.raises(RemoteError, match=message) as info:
            remote.generate("a", **PLAIN)
        assert len(str(info.value)) < 600

    def test_what_came_before_a_cut_is_seen_in_a_stream(
        self, server: OpenAIServer, remote: LLM
    ) -> None:
        server.faults.append(say(piece("half"), end=False))
        stream = remote.stream("a", **PLAIN)
        assert next(stream).text == "half"
        with pytest.raises(RemoteError, match="ended before"):
            next(stream)

    def test_an_end_without_done_is_an_end(self, server: OpenAIServer, remote: LLM) -> None:
        server.faults.append(say(piece("all", "stop"), end=False))
        assert remote.generate("a", **PLAIN).text == "all"

    @pytest.mark.parametrize("headers", [True, False])
    def test_a_server_that_falls_silent(self, server: OpenAIServer, headers: bool) -> None:
        with LLM(server.model, timeout=0.3) as llm:
            server.faults.append(hang(headers=headers))
            with pytest.raises(RemoteError, match=r"said nothing for 0\.3 seconds") as info:
                llm.generate("a", **PLAIN)
        assert info.value.retryable

    def test_nobody_there(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(RemoteError, match=r"nothing answers at.*is the server running"):
            LLM(f"remote:http://127.0.0.1:{port}/v1")

    @pytest.mark.parametrize("seconds", [0, -1, "5", True, math.inf])
    def test_timeouts_are_checked(self, server: OpenAIServer, seconds: Any) -> None:
        with pytest.raises(ConfigError, match="timeout"):
            LLM(server.model, timeout=seconds)


class TestLeaving:
    def test_a_stream_that_is_closed_ends_the_servers_work(
        self, server: OpenAIServer, remote: LLM
    ) -> None:
        server.faults.append(drip("more "))
        stream = remote.stream("a", seed=1)
        assert next(stream).text == "more "
        stream.close()
        assert stream.completion is not None
        assert stream.completion.finish_reason == "cancelled"
        assert stream.completion.text.startswith("more ")
        assert server.stopped.wait(60)

    def test_a_stream_that_is_dropped_does_too(self, server: OpenAIServer, remote: LLM) -> None:
        server.faults.append(drip("more "))
        stream = remote.stream("a", seed=1)
        next(stream)
        del stream
        assert server.stopped.wait(60)

    def test_a_silent_server_holds_nobody(self, server: OpenAIServer, remote: LLM) -> None:
        """The timeout is a minute; leaving takes none of it."""
        for headers in (True, False):
            server.faults.append(hang(headers=headers))
            stream = remote.stream("a", seed=1)
            stream.close()
            assert stream.completion is not None
            assert stream.completion.finish_reason == "cancelled"

    def test_a_closed_model(self, server: OpenAIServer) -> None:
        llm = LLM(server.model)
        llm.close()
        llm.close()
        with pytest.raises(EngineError, match="closed"):
            llm.generate("a", **PLAIN)


def test_images_go_to_the_server_as_they_are(server: OpenAIServer, remote: LLM) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    message = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]}
    server.faults.append(
        say({"choices": [{"delta": {"content": "a cat"}, "finish_reason": "stop"}]})
    )
    assert remote.chat([message], **PLAIN).text == "a cat"
    assert server.bodies[-1]["messages"] == [message]
