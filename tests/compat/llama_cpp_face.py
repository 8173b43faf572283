"""The public face of llama-cpp-python's `Llama` as data, and how its golden is made.

    python tests/compat/llama_cpp_face.py PATH/llama_cpp/llama.py > tests/compat/llama_cpp_face.json

with the source file of the package's sdist, which need not be compiled: it is read, not run.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

from insula.compat.llama_cpp import constants

KINDS = ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg")


def face(source: str, cls: str = "Llama") -> dict[str, Any]:
    """Each public member of a class: what it is, and its parameters if it is called."""
    [node] = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls]
    found: dict[str, Any] = {}
    for item in node.body:
        if not isinstance(item, ast.FunctionDef):
            continue
        if item.name.startswith("_") and item.name not in ("__init__", "__call__"):
            continue
        names = {d.id for d in item.decorator_list if isinstance(d, ast.Name)}
        if any(isinstance(d, ast.Attribute) for d in item.decorator_list):
            continue  # a property's setter
        if "property" in names:
            found[item.name] = {"kind": "property"}
            continue
        kind = next((n for n in ("staticmethod", "classmethod") if n in names), "method")
        found[item.name] = {"kind": kind, "parameters": parameters(item.args)}
    return found


def parameters(arguments: ast.arguments) -> list[list[str]]:
    """Name, kind and default of each parameter but self and cls."""
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = [None] * (len(positional) - len(arguments.defaults))
    rows = [
        [arg.arg, "positional", default(value)]
        for arg, value in zip(positional, [*missing, *arguments.defaults], strict=True)
        if arg.arg not in ("self", "cls")
    ]
    if arguments.vararg is not None:
        rows.append([arguments.vararg.arg, "*", "-"])
    rows += [
        [arg.arg, "keyword", default(value)]
        for arg, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        rows.append([arguments.kwarg.arg, "**", "-"])
    return rows


def default(node: ast.expr | None) -> str:
    """A default as text, a constant of the header by its value."""
    if node is None:
        return "-"
    name = node.attr if isinstance(node, ast.Attribute) else None
    return repr(getattr(constants, name)) if name is not None else ast.unparse(node)


if __name__ == "__main__":
    golden = {
        "provenance": {
            "package": "llama-cpp-python",
            "version": "0.3.36",
            "sdist": "llama_cpp_python-0.3.36.tar.gz",
            "made_by": "python tests/compat/llama_cpp_face.py PATH/llama_cpp/llama.py",
        },
        "Llama": face(Path(sys.argv[1]).read_text(encoding="utf-8")),
    }
    json.dump(golden, sys.stdout, indent=1)
    sys.stdout.write("\n")
