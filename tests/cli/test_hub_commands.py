"""search, recommend, pull of every source, create, cp, prune, export, import, lock: as typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.conftest import failed
from hub_server import slowly
from split_model import split

MODELFILE = """FROM ./tiny.gguf
PARAMETER temperature 0
PARAMETER num_predict 4
SYSTEM Be brief.
MESSAGE user one
MESSAGE assistant two
PARAMETER num_gpu 1
"""


@pytest.fixture
def here(tiny, tmp_path) -> Path:
    """A folder with a model and a Modelfile in it, where commands are run."""
    (tmp_path / "tiny.gguf").write_bytes(tiny.read_bytes())
    (tmp_path / "Modelfile").write_text(MODELFILE)
    return tmp_path


def test_create_run_show_cp_rm(insula, here, env):
    done = insula("create", "mine")
    assert done.returncode == 0, done.stderr
    assert "mine:latest is ready" in done.stdout
    assert "num_gpu has no meaning here" in done.stderr

    done = insula("run", "mine", "hello", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["report"]["completion_tokens"] == 4
    assert "num_gpu" in done.stderr
    base = json.loads(insula("run", "./tiny.gguf", "hello", "-t", "0", "-n", "4", "--json").stdout)
    assert answer["report"]["prompt_tokens"] > base["report"]["prompt_tokens"]
    longer = json.loads(insula("run", "mine", "hello", "-n", "6", "--json").stdout)
    assert longer["report"]["completion_tokens"] == 6

    shown = json.loads(insula("show", "mine", "--json").stdout)
    assert shown["defaults"]["system"] == "Be brief."
    assert "temperature 0.0" in insula("show", "mine").stdout
    written = insula("show", "mine", "--modelfile").stdout
    (here / "again").write_text(written)
    assert insula("create", "again", "-f", "again", "-q").returncode == 0
    one, two = (
        json.loads(insula("cp", name, "x:" + name, "--json").stdout) for name in ("mine", "again")
    )
    assert one["sha256"] == two["sha256"]
    assert one["defaults"] == two["defaults"]
    listed = json.loads(insula("list", "--json").stdout)["store"]
    assert [row["references"] for row in listed] == [4, 4, 4, 4]
    assert failed(insula("cp", "mine", "hf.co/o/r"), 2)
    assert failed(insula("cp", "none", "y"), 1)
    for name in ("mine", "again", "x:mine", "x:again"):
        assert insula("rm", name).returncode == 0
    blobs = Path(env["INSULA_HOME"]) / "models" / "blobs"
    assert list(blobs.iterdir()) == []


def test_a_chat_has_the_models_settings(insula, here):
    assert insula("create", "mine", "-q").returncode == 0
    done = insula("run", "mine", stdin="", INSULA_LANG="en")
    assert done.returncode == 2  # nothing to answer in a pipe
    done = insula("run", "mine", "hi", "--stats")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("SYSTEM x", 2, "no FROM"),
        ("FROM ./none.gguf", 1, "FROM ./none.gguf"),
        ('FROM ./tiny.gguf\nTEMPLATE "{% for %}"', 2, "TEMPLATE does not work"),
        ('FROM ./tiny.gguf\nTEMPLATE "{{ raise_exception(messages) }}"', 2, "TEMPLATE"),
        ("FROM ./tiny.gguf\nPARAMETER stop", 2, "line 2"),
    ],
)
def test_modelfiles_that_do_not_work(insula, here, source, code, says):
    (here / "bad").write_text(source)
    assert says in failed(insula("create", "mine", "-f", "bad", "-q"), code)
    assert json.loads(insula("list", "--json").stdout)["store"] == []


def test_a_modelfile_from_a_pipe_and_one_that_is_not_there(insula, here):
    assert insula("create", "mine", "-f", "-", "-q", stdin="FROM tiny.gguf").returncode == 0
    assert "no Modelfile none" in failed(insula("create", "mine", "-f", "none"), 1)
    assert "not a Modelfile" in failed(insula("create", "mine", "-f", "tiny.gguf"), 2)
    assert "ningún Modelfile" in failed(insula("create", "m", "-f", "none", LANG="es_ES"), 1)


def test_what_is_no_adapter_is_refused_when_the_model_is_made(insula, here):
    (here / "Modelfile").write_text("FROM tiny.gguf\nADAPTER tiny.gguf\n")
    assert "is no adapter" in failed(insula("create", "mine", "-q"), 1)
    assert "ADAPTER tiny.gguf" in failed(insula("create", "mine", "-q", LANG="es_ES"), 1)
    assert json.loads(insula("list", "--json").stdout)["store"] == []


def test_a_split_model_in_every_command(insula, here, hub, tiny, env, tmp_path):
    files = split(tiny, tmp_path / "parts", base="t-Q4_K_M")
    hub.add("o/r", {f"Q4_K_M/{path.name}": path.read_bytes() for path in files})
    total = sum(path.stat().st_size for path in files)
    done = insula("pull", "hf.co/o/r", "--json")
    assert done.returncode == 0, done.stderr
    name = json.loads(done.stdout)["name"]
    (row,) = json.loads(insula("list", "--json").stdout)["store"]
    assert (row["name"], row["model_size"], row["complete"]) == (name, total, True)
    shown = json.loads(insula("show", name, "--json").stdout)
    assert shown["size"] == total
    assert insula("show", name).returncode == 0
    wanted = insula("run", str(tiny), "hi", "-t", "0", "-n", "4")
    assert insula("run", name, "hi", "-t", "0", "-n", "4").stdout == wanted.stdout
    assert insula("cp", name, "mine").returncode == 0
    assert insula("lock", "mine").returncode == 0
    assert insula("export", "mine", "-o", "out.tar").returncode == 0
    assert insula("rm", name, "mine").returncode == 0
    models = Path(env["INSULA_HOME"]) / "models"
    assert not [path for path in models.rglob("*") if path.is_file()]
    done = insula("import", "out.tar", "--json")
    assert done.returncode == 0, done.stderr
    assert insula("run", "mine", "hi", "-t", "0", "-n", "4").stdout == wanted.stdout
    assert insula("lock").returncode == 0


def test_a_damaged_manifest_can_be_removed(insula, here, env):
    assert insula("import", "tiny.gguf", "--name", "mine").returncode == 0
    models = Path(env["INSULA_HOME"]) / "models"
    (models / "manifests" / "mine" / "latest.json").write_text("{}")
    done = insula("rm", "mine")
    assert done.returncode == 0, done.stderr
    assert "could not be read" in done.stdout
    assert len(list((models / "blobs").iterdir())) == 1
    assert insula("prune").returncode == 0
    assert list((models / "blobs").iterdir()) == []
    assert "no model" in failed(insula("rm", "mine"), 1)


def test_what_a_stranger_wrote_drives_no_terminal(insula, here):
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    (here / "Modelfile").write_text(f"FROM tiny.gguf\nSYSTEM a{evil}b\nLICENSE c{evil}d\x0c\n")
    assert insula("create", "mine", "-q").returncode == 0
    done = insula("show", "mine", "--modelfile")
    assert done.returncode == 0, done.stderr
    assert "a]0;owned[2J31mb" in done.stdout
    assert not set(done.stdout) & set(map(chr, (*range(9), *range(11, 32), *range(127, 160))))
    assert "8 control characters" in done.stderr
    exact = json.loads(insula("show", "mine", "--modelfile", "--json").stdout)["modelfile"]
    assert f"a{evil}b" in exact


def test_pull_from_every_source(insula, hub, tiny, here):
    data = tiny.read_bytes()
    hub.add_to_registry("library/tiny:1b", [("model", data), ("system", b"Be brief.")])
    hub.blobs["t.gguf"] = data
    hub.add("o/r", {"t-F32.gguf": data})
    names = []
    for source in ("ollama.com/library/tiny:1b", f"{hub.cdn}/t.gguf", "hf.co/o/r", "./tiny.gguf"):
        done = insula("pull", source, "--json")
        assert done.returncode == 0, done.stderr
        names.append(json.loads(done.stdout)["name"])
    listed = json.loads(insula("list", "--json").stdout)["store"]
    assert sorted(row["name"] for row in listed) == sorted(names)
    assert len({row["path"] for row in listed}) == 1  # the same bytes, once
    for name in names:
        done = insula("run", name, "hi", "-t", "0", "-n", "2", "--json")
        assert done.returncode == 0, done.stderr
    # Downloaded when first needed, as any model is.
    assert insula("rm", names[0]).returncode == 0
    done = insula("run", "ollama.com/library/tiny:1b", "hi", "-n", "1", "--json")
    assert done.returncode == 0, done.stderr


def test_import_in_place_export_import(insula, here, env, tmp_path):
    assert insula("import", "tiny.gguf", "--in-place", "--name", "small").returncode == 0
    rows = json.loads(insula("list", "--json").stdout)["store"]
    assert rows[0]["path"] == str(here / "tiny.gguf")
    assert rows[0]["references"] == 0
    done = insula("export", "small", "-o", "out.tar")
    assert done.returncode == 0, done.stderr
    assert "1 model(s)" in done.stdout
    assert "--force" in failed(insula("export", "small", "-o", "out.tar"), 2)
    assert insula("export", "small", "-o", "out.tar", "--force", "-q").returncode == 0
    other = {"INSULA_HOME": str(tmp_path / "other")}
    done = insula("import", "out.tar", "--json", **other)
    assert json.loads(done.stdout)[0]["name"] == "small:latest"
    assert insula("run", "small", "hi", "-n", "1", "--json", **other).returncode == 0
    assert failed(insula("import", "out.tar", "--name", "x", **other), 2)
    assert failed(insula("import", "Modelfile", **other), 1)
    assert failed(insula("import", "none", **other), 1)
    (here / "tiny.gguf").write_bytes(b"GGUF changed")
    assert "changed" in failed(insula("run", "small", "hi"), 1)


def test_lock(insula, hub, tiny, here):
    data = tiny.read_bytes()
    hub.add("o/r", {"t-F32.gguf": data})
    assert insula("pull", "hf.co/o/r", "-q").returncode == 0
    assert "pins nothing" in insula("lock").stdout
    done = insula("lock", "hf.co/o/r:F32")
    assert done.returncode == 0, done.stderr
    assert "as pinned" in done.stdout
    hub.add("o/r", {"t-F32.gguf": data + bytes(32)})
    assert "is pinned by" in failed(insula("pull", "hf.co/o/r", "-q"), 1)
    assert insula("run", "hf.co/o/r:F32", "hi", "-n", "1").returncode == 0
    document = json.loads((here / "insula.lock").read_text())
    document["models"]["hf.co/o/r:F32"]["digest"] = "0" * 64
    (here / "insula.lock").write_text(json.dumps(document))
    done = insula("lock", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["models"][0]["state"] == "changed"
    assert "fijado" in failed(insula("run", "hf.co/o/r:F32", "hi", LANG="es_ES"), 1)
    assert insula("lock", "--remove", "hf.co/o/r:F32").returncode == 0
    assert failed(insula("lock", "--remove"), 2)
    assert insula("pull", "hf.co/o/r", "-q").returncode == 0


def test_prune(insula, here, env):
    assert insula("import", "tiny.gguf", "--name", "a", "-q").returncode == 0
    models = Path(env["INSULA_HOME"]) / "models"
    (models / "blobs" / f"sha256-{'1' * 64}").write_bytes(b"orphan")
    found = json.loads(insula("prune", "--dry-run", "--json").stdout)
    assert found == {"files": 1, "freed": 6, "dry_run": True}
    assert "1 unused files are removed" in insula("prune").stdout
    assert json.loads(insula("prune", "--json").stdout)["files"] == 0
    assert insula("run", "a", "hi", "-n", "1").returncode == 0


def test_search(insula, hub):
    done = insula("search", "smollm2")
    assert done.returncode == 0
    assert "FineWeb-Edu" in done.stdout
    rows = json.loads(insula("search", "olmo", "--json").stdout)
    assert {row["licence"] for row in rows} == {"Apache-2.0"}
    assert all(row["data"] == ["OLMo-mix-1124", "Dolmino-mix-1124"] for row in rows)
    assert "nothing found" in insula("search", "no such thing").stdout
    assert "no hay nada" in insula("search", "no such thing", LANG="es_ES").stdout
    assert hub.seen == []  # not a word to the network

    hub.add("some/Nice-GGUF", {"m.gguf": b"GGUF"})
    assert "hf.co/some/Nice-GGUF" in insula("search", "--online", "nice").stdout
    assert json.loads(insula("search", "--online", "nice", "--json").stdout)[0]["likes"] == 7
    assert failed(insula("search", "--online"), 2)
    assert failed(insula("search", "--online", "x", "--limit", "0"), 2)


def test_recommend(insula, here):
    assert insula("import", "tiny.gguf", "--name", "a", "-q").returncode == 0
    found = json.loads(insula("recommend", "--json", "--all", "--ctx", "256").stdout)
    assert found["bandwidth_gb_per_s"] > 0
    rows = {row["name"]: row for row in found["models"]}
    mine = rows["a:latest"]
    assert mine["here"] is True
    assert mine["n_ctx"] == 256
    assert mine["fits"] is True
    assert mine["tokens_per_second"] > mine["tokens_per_second_full_context"] > 0
    assert any(row["estimated"] for row in rows.values())
    fast = json.loads(insula("recommend", "--json", "--fast").stdout)
    assert fast["bandwidth_gb_per_s"] is None
    done = insula("recommend", "--fast", LANG="es_ES")
    assert "MEMORIA" in done.stdout
    assert failed(insula("recommend", "--ctx", "0"), 2)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")
def test_a_large_pull_killed_and_resumed(insula, hub, env):
    data = b"GGUF" + os.urandom(48 << 20)
    hub.add("o/r", {"m.gguf": data})
    hub.faults += [slowly(0.002)] * 4
    partial = Path(env["INSULA_HOME"]) / "models" / "partial"
    with subprocess.Popen(
        [sys.executable, "-m", "insula", "pull", "hf.co/o/r", "-q"],
        env={**env, "INSULA_HUB_CONNECTIONS": "3"},
    ) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            journals = list(partial.glob("*.chunks"))
            if journals and journals[0].read_text().count("\n") > 3:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(next(partial.glob("*.chunks")).read_text().split("\n")) - 2
    assert done >= 3
    hub.faults.clear()
    before = len(hub.bytes_requests())
    finished = insula("pull", "hf.co/o/r", "--json")
    assert finished.returncode == 0, finished.stderr
    assert Path(json.loads(finished.stdout)["path"]).read_bytes() == data
    ranges = [seen.headers["Range"][6:].split("-") for seen in hub.bytes_requests()[before:]]
    fetched = sum(int(b) - int(a) + 1 for a, b in ranges)
    assert fetched <= len(data) - (done - 1) * (4 << 20)
    assert not list(partial.iterdir())
