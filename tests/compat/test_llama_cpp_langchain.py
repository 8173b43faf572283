"""langchain-community's wrappers over llama-cpp-python run over ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from insula.compat.llama_cpp import Llama

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "langchain_over_llama_cpp.py"
#: A folder of site-packages that has langchain-community, for an environment that has it not.
ELSEWHERE = "INSULA_TEST_LANGCHAIN"


def test_the_wrappers(tiny_model: Path) -> None:
    elsewhere = os.environ.get(ELSEWHERE)
    if find_spec("langchain_community") is None and not elsewhere:
        pytest.skip(f"langchain-community is not installed; {ELSEWHERE} may name a site-packages")
    environment = dict(os.environ)
    if elsewhere:
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (environment.get("PYTHONPATH"), elsewhere))
        )
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_model)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    with Llama(str(tiny_model), n_ctx=256, verbose=False) as llm:
        # The wrappers' own defaults.
        plain: Any = llm("the quick brown", max_tokens=12, temperature=0.0, repeat_penalty=1.1)
        chat: Any = llm.create_chat_completion(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hello there"},
            ],
            max_tokens=12,
            temperature=0.0,
            repeat_penalty=1.1,
        )
    assert found["invoke"] == plain["choices"][0]["text"]
    assert "".join(found["stream"]) == found["invoke"]
    assert found["tokens"] == plain["usage"]["prompt_tokens"]
    assert found["invoke"].startswith(found["stop"])
    assert len(found["stop"]) < len(found["invoke"])
    assert found["chat"] == chat["choices"][0]["message"]["content"] == found["chat stream"]
    assert found["finish"] == "length"
    assert re.fullmatch("[0-9]+", found["grammar"])
    assert "no embeddings" in found["embeddings"]
