"""`insula serve` as a process: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for one in started:
        one.kill()
        one.communicate()


def serve(tmp_path: Path, *args: str, **variables: str) -> subprocess.Popen[str]:
    env = {key: os.environ[key] for key in KEPT if key in os.environ}
    env |= {"HOME": str(tmp_path), "INSULA_HOME": str(tmp_path / "home"), "LANG": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "insula", "serve", "--port", "0", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, **variables},
        cwd=tmp_path,
    )


def address(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    for line in running.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise AssertionError(running.stderr.read() if running.stderr else "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing there")
def test_it_listens_answers_and_stops_with_zero(tmp_path, files, process):
    running = serve(tmp_path, str(files["endless"]))
    process.append(running)
    url = address(running)
    assert running.stdout is not None
    said = [running.stdout.readline() for _ in range(4)]
    assert said[0] == "models: endless\n"
    assert f"curl {url}/v1/chat/completions" in said[2]
    ask = {"model": "endless", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    assert httpx2.post(f"{url}/v1/chat/completions", json=ask, timeout=60).status_code == 200
    began: set[int] = set()
    ends: list[str] = []

    def stream(number: int) -> None:
        more = {**ask, "max_tokens": 300, "stream": True, "ignore_eos": True}
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=more, timeout=60) as answer:
            for line in answer.iter_lines():
                if '"content":' in line:
                    began.add(number)
                if line == "data: [DONE]":
                    ends.append("done")

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while len(began) < 3:
        threads[0].join(0.01)
    running.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert ends.count("done") == 3  # they were few, and had the time
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert "endless is loaded" in err
    assert "Traceback" not in err


def test_in_spanish(tmp_path, files, process):
    running = serve(tmp_path, str(files["tiny"]), INSULA_LANG="es")
    process.append(running)
    assert running.stdout is not None
    assert "Insula escucha en http://127.0.0.1:" in running.stdout.readline()
    assert running.stdout.readline() == "modelos: tiny\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--host", "0.0.0.0"), "--allow-open"),
        (("--keep-alive", "soon"), "--keep-alive"),
        (("nowhere.gguf",), "nowhere.gguf"),
        (("--memory", "much"), "--memory"),
        (("--max-running", "0"), "--max-running"),
    ],
)
def test_what_it_refuses_in_one_line(tmp_path, process, args, said):
    running = serve(tmp_path, *args)
    process.append(running)
    out, err = running.communicate(timeout=60)
    assert running.returncode in (1, 2)
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1, err


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path, files, process):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files["tiny"].read_bytes()[:5000])
    running = serve(tmp_path, str(broken))
    process.append(running)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "insula: " in err
    assert "Traceback" not in err
    assert not json.dumps(err).count("Exception")
