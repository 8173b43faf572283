"""Imports go one way, down the way of a request read backwards (docs/architecture.md).

Every import statement counts: inside a function, under TYPE_CHECKING, relative or absolute.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "insula"

#: Each room may import the rooms of the lines above its own, and itself; not its neighbours.
LADDER = (
    ("types", "errors", "locale", "_native"),
    ("config",),
    ("security",),
    ("ops",),
    ("formats", "tokenizer"),
    ("models",),
    ("engine",),
    ("chat", "hub", "store"),
    ("given",),
    ("llm_embeddings", "llm_chat", "llm_scoring"),
    ("llm",),
    ("async_llm",),
    ("rag", "agents", "train", "evals", "lens", "guard", "tasks"),
    ("server", "compat"),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(LADDER) for room in rooms}
#: `insula/__init__.py` hands out names of both lazily: who imports the package root stands above.
ROOT_RANK = RANK["async_llm"]


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, dotted name below insula) of each import of ours; '' is the package root.

    `package` is the package that the module lies in, below insula: () at the root.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "insula":
                    yield node.lineno, alias.name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - (node.level - 1)]
            elif node.module is not None and node.module.split(".")[0] == "insula":
                base = ()
            else:
                continue
            module = node.module or ""
            inside = module if node.level else module.partition(".")[2]
            base = (*base, *(part for part in inside.split(".") if part))
            if base:
                yield node.lineno, ".".join(base)
                continue
            for alias in node.names:  # from insula import errors, LLM
                yield node.lineno, alias.name if alias.name in RANK else ""


def upward(path: Path, text: str) -> list[str]:
    """What is wrong with the imports of the module at `path` (relative to insula/)."""
    parts = path.with_suffix("").parts
    room = parts[0]
    if room == "__init__":
        return []
    if room not in RANK:
        return [f"{path}: room {room!r} has no place in LADDER; give it one here and in the docs"]
    wrong = []
    for line, name in imported(ast.parse(text), parts[:-1]):
        target = name.split(".")[0]
        rank = RANK.get(target, ROOT_RANK) if target else ROOT_RANK
        if target == room:
            continue
        if rank >= RANK[room]:
            wrong.append(f"{path}:{line}: {room} imports {target or 'the package root'}")
    return wrong


def test_no_import_goes_up() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20
    wrong = [
        message
        for file in files
        for message in upward(file.relative_to(SOURCE), file.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "text", "bad"),
    [
        ("engine/engine.py", "from insula.chat import templates", True),
        ("engine/engine.py", "from insula import llm", True),
        ("engine/engine.py", "from insula import LLM", True),
        ("engine/engine.py", "import insula.cli.main", True),
        ("engine/engine.py", "def f():\n    from ..llm import LLM", True),
        ("engine/backends/base.py", "from ...cli import main", True),
        ("chat/session.py", "from insula.hub import store", True),
        ("formats/gguf.py", "from ..tokenizer import Tokenizer", True),
        ("attic/thing.py", "", True),
        ("engine/engine.py", "from . import request\nfrom .. import errors", False),
        ("engine/backends/base.py", "from ..engine import Engine", False),
        ("engine/engine.py", "from insula.models.load import open_model", False),
        ("compat/gpt4all.py", "from insula import LLM", False),
        ("__init__.py", "from .llm import LLM", False),
        ("engine/engine.py", "import numpy", False),
    ],
)
def test_the_check_itself(path: str, text: str, *, bad: bool) -> None:
    assert bool(upward(Path(path), text)) is bad


HEAVY = ("torch", "transformers", "httpx2", "httpx", "rich", "typer", "jinja2", "prompt_toolkit")


def test_importing_the_package_is_light() -> None:
    """`import insula` brings none of the heavy libraries and takes well under a second.

    The target is 0.2 s on an idle machine, which the bench records; this bound only notices a
    library that slipped in under a name the list does not know.
    """
    program = (
        "import sys, time; start = time.perf_counter(); import insula; "
        "print(time.perf_counter() - start, *sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    seconds, *modules = result.stdout.split()
    assert not set(HEAVY) & set(modules)
    assert float(seconds) < 2.0
