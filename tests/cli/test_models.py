"""pull, list, show, rm: what a person does with models."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.conftest import failed
from hub_server import die_after, other_bytes, slowly, status
from insula.hub.catalog import CATALOG
from tiny_chat_model import TEMPLATE, write_tiny


def store_files(env: dict[str, str]) -> list[str]:
    root = Path(env["INSULA_HOME"]) / "models"
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_pull_list_show_rm(insula, hub, tiny, env):
    data = tiny.read_bytes()
    hub.add("some/tiny-GGUF", {"tiny-F32.gguf": data, "README.md": b"hi"})
    done = insula("pull", "hf.co/some/tiny-GGUF")
    assert done.returncode == 0, done.stderr
    assert "hf.co/some/tiny-GGUF:F32 is ready" in done.stdout
    assert "apache-2.0" in done.stdout
    assert "100 %" in done.stderr
    assert "\x1b" not in done.stderr

    listed = json.loads(insula("list", "--json").stdout)
    (model,) = listed["store"]
    assert model["name"] == "hf.co/some/tiny-GGUF:F32"
    assert model["sha256"] == hashlib.sha256(data).hexdigest()
    assert model["complete"] is True
    assert Path(model["path"]).read_bytes() == data
    assert [row["name"] for row in listed["available"]] == list(CATALOG)
    plain = insula("list").stdout
    assert plain.splitlines()[0].split() == ["NAME", "SIZE", "LICENCE", "WHERE"]
    assert "hf.co/some/tiny-GGUF:F32" in plain

    shown = json.loads(insula("show", "hf.co/some/tiny-GGUF", "--json").stdout)
    assert shown["sha256"] == model["sha256"]

    ask = ("-t", "0", "--max-tokens", "2", "--raw", "hi")
    done = insula("run", "hf.co/some/tiny-GGUF:F32", "--weights", "mmap", *ask)
    assert done.returncode == 0, done.stderr
    assert len(list((Path(env["INSULA_HOME"]) / "packed").glob("*.weights"))) == 1

    done = insula("rm", "hf.co/some/tiny-GGUF:F32")
    assert (done.returncode, done.stderr) == (0, "")
    assert list((Path(env["INSULA_HOME"]) / "packed").iterdir()) == []
    assert store_files(env) == []
    assert "no model" in failed(insula("rm", "hf.co/some/tiny-GGUF:F32"), 1)


def test_pull_as_json(insula, hub, tiny):
    hub.add("o/r", {"m.gguf": tiny.read_bytes()})
    done = insula("pull", "hf.co/o/r", "--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["name"] == "hf.co/o/r:m"
    assert Path(found["path"]).is_file()


def test_a_broken_download_says_so_and_goes_on_later(insula, hub, tiny, env):
    hub.add("o/r", {"m.gguf": tiny.read_bytes()})
    hub.faults += [die_after(100_000), status(404)]
    done = insula("pull", "hf.co/o/r")
    assert done.returncode == 1
    assert "404" in done.stderr.splitlines()[-1]
    assert any(name.endswith(".part") for name in store_files(env))
    assert insula("pull", "hf.co/o/r").returncode == 0
    assert hub.bytes_requests()[-1].headers["Range"] == "bytes=100000-"
    assert not any("partial" in name for name in store_files(env))


def test_a_wrong_checksum(insula, hub, tiny, env):
    hub.add("o/r", {"m.gguf": tiny.read_bytes()})
    hub.faults += [other_bytes(bytes(len(tiny.read_bytes())))]
    done = insula("pull", "hf.co/o/r", "-q")
    assert "sha256" in failed(done, 1)
    assert store_files(env) == []


def test_no_network(insula):
    line = failed(insula("pull", "hf.co/o/r", "-q", HF_ENDPOINT="http://127.0.0.1:1"), 1)
    assert "nothing answered at 127.0.0.1" in line
    assert "nadie responde" in failed(
        insula("pull", "hf.co/o/r", "-q", HF_ENDPOINT="http://127.0.0.1:1", LANG="es_ES"), 1
    )


def test_no_space(insula, hub, tiny):
    repo = hub.add("o/r", {"m.gguf": tiny.read_bytes()})
    # The hub announces more than any disk holds.
    hub.api_faults += [
        lambda handler: False,
        lambda handler: (
            handler.reply(
                200, json.dumps([{"type": "file", "path": "m.gguf", "size": 1 << 60}]).encode()
            )
            or True
        ),
    ]
    assert repo.files
    assert "not enough disk space" in failed(insula("pull", "hf.co/o/r", "-q"), 1)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_and_resumed(insula, hub, env, number):
    data = os.urandom(3_000_000)
    hub.add("o/r", {"m.gguf": data})
    hub.faults += [slowly(0.05)]
    partial = Path(env["INSULA_HOME"]) / "models" / "partial"
    with subprocess.Popen(
        [sys.executable, "-m", "insula", "pull", "hf.co/o/r"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            parts = list(partial.glob("*.part"))
            if parts and parts[0].stat().st_size > 500_000:
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert b"Traceback" not in err
    (part,) = partial.glob("*.part")
    kept = part.stat().st_size
    assert 500_000 < kept < len(data)
    assert insula("pull", "hf.co/o/r").returncode == 0
    assert hub.bytes_requests()[-1].headers["Range"] == f"bytes={kept}-"
    assert hashlib.sha256(data).hexdigest() in " ".join(store_files(env))


def test_other_programs_models_are_listed_and_usable(insula, tiny, env):
    folder = Path(env["HOME"]) / ".lmstudio" / "models" / "pub" / "repo"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(tiny.read_bytes())
    (local,) = json.loads(insula("list", "--json").stdout)["local"]
    assert local["name"] == "lmstudio/pub/repo/tiny.gguf"
    assert json.loads(insula("show", local["name"], "--json").stdout)["architecture"] == "llama"
    assert "belongs to lmstudio" in failed(insula("rm", local["name"]), 2)
    assert (folder / "tiny.gguf").exists()


def test_show(insula, tiny):
    done = insula("show", str(tiny))
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(
        line.split("  ", 1) for line in done.stdout.splitlines() if not line.startswith(" ")
    )
    assert rows["architecture"].strip() == "llama"
    assert rows["licence"].strip() == "apache-2.0"
    assert rows["engine"].strip().startswith("native")
    assert "it fits" in done.stdout
    assert "cabe" in insula("show", str(tiny), LANG="es_ES.UTF-8").stdout


def test_show_counts_the_kv_cache_exactly(insula, tiny):
    found = json.loads(insula("show", str(tiny), "--json", "--ctx", "100").stdout)
    # 2 layers x 2 kv heads x (16 + 16) values of 2 bytes, for 100 tokens.
    assert found["memory"]["kv_cache"] == 2 * 2 * 32 * 2 * 100
    assert found["memory"]["n_ctx"] == 100
    assert found["memory"]["fits"] is True
    assert found["context_length"] == 512
    assert found["template"] == TEMPLATE
    assert found["parameters"] == sum(
        [2 * 320 * 64, 64, 2 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)]
    )
    huge = json.loads(insula("show", str(tiny), "--json", "--ctx", str(1 << 50)).stdout)
    assert huge["memory"]["fits"] is False
    assert "NOT" in insula("show", str(tiny), "--ctx", str(1 << 50)).stdout


def test_show_the_parts(insula, tiny):
    assert insula("show", str(tiny), "--template").stdout == TEMPLATE + "\n"
    assert "llama.block_count" in insula("show", str(tiny), "--metadata").stdout
    assert "320 x 64" in insula("show", str(tiny), "--tensors").stdout


def test_show_a_file_that_tries_to_drive_the_terminal(insula, tmp_path):
    path = write_tiny(tmp_path / "evil.gguf", name="\x1b[2Jcleared")
    shown = json.loads(insula("show", str(path), "--json").stdout)
    assert shown["name"] == "\x1b[2Jcleared"  # a program gets what is there
    assert "\x1b" not in insula("show", str(path)).stdout


@pytest.mark.parametrize("command", ["show", "tokenize", "run", "bench", "quantize"])
def test_files_that_are_no_models(insula, tmp_path, command):
    rest = {"tokenize": ["text"], "run": ["text"], "quantize": ["out.gguf", "Q8_0"]}
    wrong = tmp_path / "photo.gguf"
    wrong.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (wrong, tmp_path / "empty.gguf", tmp_path / "folder", tmp_path / "gone.gguf"):
        line = failed(insula(command, str(path), *rest.get(command, [])), 1)
        assert path.name in line


def test_unknown_names(insula):
    for args in (["show", "gpt-5"], ["tokenize", "gpt-5", "x"], ["run", "gpt-5", "x"]):
        assert "smollm2:135m" in failed(insula(*args), 1)
    assert "insula pull smollm2" in failed(insula("show", "smollm2"), 1)


def test_rm_unused(insula, hub, tiny, env):
    hub.add("o/r", {"m.gguf": tiny.read_bytes()})
    insula("pull", "hf.co/o/r")
    orphan = Path(env["INSULA_HOME"]) / "models" / "blobs" / f"sha256-{'0' * 64}"
    orphan.write_bytes(b"x" * 100)
    found = json.loads(insula("rm", "--unused", "--json").stdout)
    assert found == {"removed": [], "unused": {"files": 1, "freed": 100}}
    assert not orphan.exists()
    assert len(json.loads(insula("list", "--json").stdout)["store"]) == 1


def test_a_broken_manifest_is_told_and_the_rest_is_listed(insula, env):
    folder = Path(env["INSULA_HOME"]) / "models" / "manifests" / "x"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text("{")
    done = insula("list")
    assert done.returncode == 0
    assert "1.json" in done.stderr
    assert "smollm2:135m" in done.stdout


def test_the_template_as_json(insula, tiny):
    done = insula("show", str(tiny), "--template", "--json")
    assert json.loads(done.stdout) == {"template": TEMPLATE}


def test_pulling_a_file_that_is_here(insula, tiny):
    done = insula("pull", str(tiny))
    assert done.returncode == 0, done.stderr
    assert "tiny:latest is ready" in done.stdout
    assert insula("run", "tiny", "hi", "-n", "1").returncode == 0


def test_files_cut_short_are_not_listed_as_models(insula, tiny, env):
    folder = Path(env["HOME"]) / ".lmstudio" / "models"
    folder.mkdir(parents=True)
    (folder / "half.gguf").write_bytes(tiny.read_bytes()[:100_000])
    (folder / "whole.gguf").write_bytes(tiny.read_bytes())
    done = insula("list")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "unusable" in rows["lmstudio/half.gguf"]
    assert "unusable" not in rows["lmstudio/whole.gguf"]
    assert "1 file(s) are cut short" in done.stderr
    listed = json.loads(insula("list", "--json").stdout)["local"]
    assert [model["usable"] for model in listed] == [False, True]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_while_downloading(insula, hub, env):
    hub.add("o/r", {"m.gguf": os.urandom(3_000_000)})
    hub.faults += [slowly(0.05)]
    partial = Path(env["INSULA_HOME"]) / "models" / "partial"
    with subprocess.Popen(
        [sys.executable, "-m", "insula", "pull", "hf.co/o/r", "-q"],
        env=env,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not list(partial.glob("*.part")):
            time.sleep(0.01)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, b"")
    # The part and its note stay, to go on from; nothing else does.
    assert sorted(path.suffix for path in partial.iterdir()) == [".json", ".part"]
