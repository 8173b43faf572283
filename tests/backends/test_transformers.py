"""The transformers backend over tiny random checkpoints, beside our own engine over the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden import golden, tiny_tokenizer
from insula import LLM
from insula.errors import ConfigError, ContextOverflowError, InsulaError, UnsupportedError
from insula.models.convert import convert
from insula.models.export import export

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch", reason="torch is not installed: a CPU build will do")
transformers = pytest.importorskip("transformers", reason="the oracle extra is not installed")

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
PROMPT = "the inner thing"


def write(folder: Path, kind: str = "llama", dtype: Any = None) -> Path:
    """A random checkpoint as transformers writes it, with the tiny tokenizer and a template."""
    torch.manual_seed(11)
    shared = {
        "vocab_size": tiny_tokenizer.N_VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": tiny_tokenizer.BOS,
        "eos_token_id": tiny_tokenizer.EOS,
        "initializer_range": 0.3,
    }
    if kind == "llama":
        config = transformers.LlamaConfig(
            **shared, intermediate_size=96, num_key_value_heads=2, max_position_embeddings=128
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPTNeoXConfig(
            **shared, intermediate_size=96, max_position_embeddings=128
        )
        model = transformers.GPTNeoXForCausalLM(config)
    model.to(dtype or torch.float32).save_pretrained(folder)
    tiny_tokenizer.save(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = CHAT
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    convert(folder, path)
    return path


def test_auto_takes_it_for_a_folder_and_says_so(folder: Path) -> None:
    with LLM(folder, n_threads=1, gpu_layers=0) as llm:
        info = llm.model_info
        assert (info.engine, info.arch, info.name) == ("transformers", "llama", "tiny-llama")
        assert info.engine_reason == "the model is a checkpoint folder"
        assert (info.n_ctx, info.n_vocab, info.n_layers) == (128, 320, 2)
        report = llm.generate(PROMPT, **GREEDY).report
        assert (report.engine, report.engine_reason) == ("transformers", info.engine_reason)
        assert report.prompt_tokens == len(llm.tokenize(PROMPT))


def test_it_is_the_same_model_as_ours(folder: Path, gguf: Path) -> None:
    """Logits to rounding, and with them the same answers, by the same sampler."""
    with (
        LLM(gguf, kv_type="f32") as ours,
        LLM(folder, engine="transformers", gpu_layers=0) as theirs,
    ):
        # With a begin token or without is the one thing that tokenizer files leave to readers.
        ids = ours.tokenize(PROMPT, add_special=False)
        assert theirs.tokenize(PROMPT, add_special=False) == ids
        assert theirs.detokenize(ids) == ours.detokenize(ids)
        np.testing.assert_allclose(theirs.logits(ids), ours.logits(ids), atol=2e-3)
        assert theirs.perplexity(ids) == pytest.approx(ours.perplexity(ids), rel=1e-3)
        for options in (
            {"temperature": 0.0},
            {"temperature": 1.0, "seed": 3},
            {"temperature": 1.0, "seed": 4, "repeat_penalty": 1.3, "mirostat": 2},
            {"temperature": 0.0, "stop": ["e"]},
        ):
            mine = ours.generate(ids, max_tokens=16, logprobs=2, **options)
            other = theirs.generate(ids, max_tokens=16, logprobs=2, **options)
            assert (other.text, other.token_ids) == (mine.text, mine.token_ids)
            assert other.finish_reason == mine.finish_reason
            assert mine.logprobs is not None
            assert other.logprobs is not None
            for one, two in zip(mine.logprobs, other.logprobs, strict=True):
                assert two.logprob == pytest.approx(one.logprob, abs=2e-3)


def test_long_prompts_go_in_slices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from insula.engine.backends import transformers as backend

    with LLM(folder, gpu_layers=0) as llm:
        ids = (llm.tokenize(PROMPT) * 20)[:100]
        whole = llm.logits(ids)
        monkeypatch.setattr(backend, "SLICE", 7)
        np.testing.assert_allclose(llm.logits(ids), whole, atol=1e-4)
        np.testing.assert_allclose(llm.logits(ids, first=93), whole[93:], atol=1e-4)


def test_chats_streams_and_sessions(folder: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with LLM(folder, gpu_layers=0) as llm:
        whole = llm.chat(messages, **GREEDY)
        chunks = list(llm.chat_stream(messages, **GREEDY))
        assert "".join(c.text for c in chunks) == whole.text
        assert llm.generate("user: hi\nassistant:", **GREEDY).token_ids == whole.token_ids
        with llm.chat_session(**GREEDY) as session:
            assert session.send("hi").text == whole.text
            session.send("and then?")
        stream = llm.stream(PROMPT, temperature=0.0, ignore_eos=True)
        next(stream)
        stream.close()
        assert stream.completion is not None
        assert stream.completion.finish_reason == "cancelled"


def test_an_architecture_that_native_lacks(tmp_path: Path) -> None:
    folder = write(tmp_path / "neox", "neox")
    with LLM(folder, gpu_layers=0) as llm:
        assert llm.model_info.arch == "gpt_neox"
        assert llm.generate(PROMPT, **GREEDY).report.completion_tokens > 0


def test_half_precision_on_a_cpu_is_said(tmp_path: Path) -> None:
    with LLM(write(tmp_path / "half", dtype=torch.float16), gpu_layers=0) as llm:
        assert llm.model_info.quantization == "float32"
        assert any("float16" in note for note in llm.model_info.notes)


def test_special_tokens_in_text(folder: Path) -> None:
    with LLM(folder, gpu_layers=0) as llm:
        assert llm.tokenize("<|eos|>", add_special=False) == [tiny_tokenizer.EOS]
        plain = llm.tokenize("<|eos|>", add_special=False, parse_special=False)
        assert tiny_tokenizer.EOS not in plain
        assert llm.detokenize(plain) == "<|eos|>"
        assert llm.detokenize([tiny_tokenizer.EOS, *plain], skip_special=True) == "<|eos|>"
        for text in ("né ☃ 漢字", "  two", "a\n\nb"):
            assert llm.detokenize(llm.tokenize(text, add_special=False)) == text


class TestRefusals:
    def test_limits(self, folder: Path) -> None:
        with LLM(folder, n_ctx=32, gpu_layers=0) as llm:
            with pytest.raises(ContextOverflowError):
                llm.generate([5] * 30, max_tokens=8)
            with pytest.raises(ConfigError, match="token id 320"):
                llm.generate([320], max_tokens=1)
        llm.close()
        with pytest.raises(InsulaError, match="closed"):
            llm.generate("a", max_tokens=1)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("speculate", "ngram"), ("kv_type", "int8"), ("weights", "mmap"), ("gpu_layers", 3)],
    )
    def test_options_by_name(self, folder: Path, option: str, value: Any) -> None:
        options = {"gpu_layers": 0, option: value}
        with pytest.raises(UnsupportedError, match=f"transformers backend cannot take {option}"):
            LLM(folder, **options)

    def test_a_gpu_that_is_not_here(self, folder: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        with pytest.raises(UnsupportedError, match="no CUDA device"):
            LLM(folder, gpu_layers=-1)

    def test_other_engines_say_how_to_go_on(self, folder: Path) -> None:
        with pytest.raises(UnsupportedError, match=r"native backend cannot open a folder.*convert"):
            LLM(folder, engine="native")

    def test_code_that_a_checkpoint_brings(self, folder: Path, tmp_path: Path) -> None:
        bad = tmp_path / "code"
        bad.mkdir()
        for file in folder.iterdir():
            (bad / file.name).write_bytes(file.read_bytes())
        config = json.loads((bad / "config.json").read_text())
        config |= {
            "model_type": "strange",
            "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
        }
        (bad / "config.json").write_text(json.dumps(config))
        ran = tmp_path / "ran"
        (bad / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass C: pass\n")
        with pytest.raises(UnsupportedError, match="code of its own, which is never run"):
            LLM(bad)
        assert not ran.exists()

    def test_pickled_weights(self, folder: Path, tmp_path: Path) -> None:
        bad = tmp_path / "pickled"
        bad.mkdir()
        for file in folder.iterdir():
            if file.suffix != ".safetensors":
                (bad / file.name).write_bytes(file.read_bytes())
        torch.save({}, bad / "pytorch_model.bin")
        with pytest.raises(UnsupportedError, match="never opened"):
            LLM(bad)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_damaged_files(self, folder: Path, tmp_path: Path, name: str) -> None:
        bad = tmp_path / "damaged"
        bad.mkdir()
        for file in folder.iterdir():
            data = file.read_bytes()
            (bad / file.name).write_bytes(data[: len(data) // 2] if file.name == name else data)
        with pytest.raises(InsulaError) as info:
            LLM(bad)
        assert "\n" not in str(info.value)


def test_a_folder_that_generates_nothing_says_what_would_run_it(tmp_path: Path) -> None:
    folder = tmp_path / "sentiment"
    export(golden.load("distilbert").write(tmp_path), folder)
    with pytest.raises(UnsupportedError, match=r"DistilBertConfig is of none.*insula convert"):
        LLM(folder)
