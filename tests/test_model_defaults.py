"""A Modelfile's settings in LLM: they hold where nothing else is said, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula import LLM
from insula.hub.create import create
from insula.hub.modelfile import parse
from insula.types import SamplingParams
from tiny_chat_model import write_tiny

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
MODELFILE = f'''FROM ./tiny.gguf
PARAMETER temperature 0
PARAMETER num_predict 3
PARAMETER num_ctx 128
PARAMETER num_thread 1
PARAMETER num_gpu 9
SYSTEM Be brief.
MESSAGE user two
MESSAGE assistant three
TEMPLATE """{TEMPLATE}"""
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("INSULA_LOCK", "INSULA_TRUSTED_KEYS", "INSULA_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "tiny.gguf")
    return tmp_path


def make(home: Path, source: str = MODELFILE, name: str = "mine") -> None:
    create(name, parse(source), folder=home)


def prompt_of(llm: LLM, text: str) -> list[int]:
    return llm.tokenize(text, add_special=False)


def test_parameters_hold_and_options_win(home):
    make(home)
    with LLM("mine") as llm:
        assert llm.n_ctx == 128
        assert llm.model_info.threads == 1
        assert any("num_gpu" in note for note in llm.model_info.notes)
        first = llm.generate("hello")
        assert len(first.token_ids) == 3
        assert llm.generate("hello").token_ids == first.token_ids  # greedy
        assert len(llm.generate("hello", max_tokens=5).token_ids) == 5
        whole = llm.generate("hello", SamplingParams(temperature=0, max_tokens=4))
        assert whole.token_ids[:3] == first.token_ids
        assert len(whole.token_ids) == 4
        assert len(list(llm.stream("hello"))[-1].completion.token_ids) == 3
        assert any("num_gpu" in note for note in first.report.notes)
    with LLM("mine", n_ctx=64, n_threads=2) as llm:
        assert llm.n_ctx == 64


def test_a_chat_begins_as_the_modelfile_says(home):
    make(home)
    own = "[system]Be brief.[user]two[assistant]three[user]hi"
    given = "[system]Talk.[user]two[assistant]three[user]hi"
    with LLM("mine") as llm:
        hi = {"role": "user", "content": "hi"}
        assert llm.chat([hi]).report.prompt_tokens == len(prompt_of(llm, own))
        talk = {"role": "system", "content": "Talk."}
        assert llm.chat([talk, hi]).report.prompt_tokens == len(prompt_of(llm, given))
        assert len(prompt_of(llm, own)) != len(prompt_of(llm, given))
        with llm.chat_session() as session:
            assert [m["content"] for m in session.messages] == ["Be brief.", "two", "three"]
            answer = session.send("hi")
            assert answer.report.prompt_tokens == len(prompt_of(llm, own))
            assert len(answer.token_ids) == 3
            assert len(session.messages) == 5
            session.clear()
            assert [m["content"] for m in session.messages] == ["Be brief.", "two", "three"]
        with llm.chat_session(system="Talk.") as session:
            assert session.system == "Talk."
            session.clear()
            assert [m["content"] for m in session.messages] == ["Talk.", "two", "three"]


def test_without_the_defaults_it_is_its_base(home):
    make(home)
    with LLM("mine", defaults=False, n_ctx=64) as llm, LLM(home / "tiny.gguf", n_ctx=64) as base:
        assert llm.default_params == SamplingParams()
        messages = [{"role": "user", "content": "hi"}]
        options = {"temperature": 0, "max_tokens": 4}
        one, two = llm.chat(messages, **options), base.chat(messages, **options)
        assert one.token_ids == two.token_ids
        assert one.report.prompt_tokens == two.report.prompt_tokens


def test_a_template_of_the_modelfile_makes_a_base_model_chat(home):
    (home / "tiny.gguf").unlink()
    write_tiny(home / "tiny.gguf", template=None)
    make(home, "FROM ./tiny.gguf\nTEMPLATE chatml", "named")
    make(home, f'FROM ./tiny.gguf\nTEMPLATE """{TEMPLATE}"""', "jinja")
    for name in ("named", "jinja"):
        with LLM(name) as llm:
            assert llm.model_info.has_chat_template
            assert llm.chat([{"role": "user", "content": "hi"}], max_tokens=1).token_ids


def test_a_go_template_is_used(home):
    said = "[{{ .System }}]{{ .Prompt }}->{{ .Response }}<|end|>"
    make(home, f'FROM ./tiny.gguf\nSYSTEM Be brief.\nTEMPLATE "{said}"')
    with LLM("mine") as llm:
        assert llm.model_info.has_chat_template
        assert llm.model_info.notes == ()
        hi = {"role": "user", "content": "hi"}
        one = llm.chat([hi], max_tokens=1)
        assert one.report.prompt_tokens == len(prompt_of(llm, "[Be brief.]hi->"))
        more = [hi, {"role": "assistant", "content": "yes"}, hi]
        two = llm.chat(more, max_tokens=1)
        said = "[Be brief.]hi->yes<|end|>[]hi->"
        assert two.report.prompt_tokens == len(prompt_of(llm, said))
        with llm.chat_session() as session:
            session.send("hi", max_tokens=1)
            assert session.send("hi", max_tokens=1).report.prompt_tokens


def test_a_go_template_that_has_no_translation_leaves_the_models_own(home):
    make(home, 'FROM ./tiny.gguf\nTEMPLATE "{{ .Wisdom }}{{ .Prompt }}"')
    with LLM("mine") as llm, LLM(home / "tiny.gguf") as base:
        messages = [{"role": "user", "content": "hi"}]
        one, two = (each.chat(messages, max_tokens=1) for each in (llm, base))
        assert one.report.prompt_tokens == two.report.prompt_tokens
        assert any("Go" in note and ".Wisdom" in note for note in one.report.notes)
