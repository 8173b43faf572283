"""The public face of gpt4all's Python package as data, and how its golden is made.

    python tests/compat/gpt4all_face.py > tests/compat/gpt4all_face.json

in an environment where `pip install gpt4all==2.8.2` has been run. `face` works on any module
of the same shape, so the same walk reads theirs and ours.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

CLASSES = ("GPT4All", "Embed4All")
EXCEPTIONS = ("CancellationError",)
DUNDER = ("__init__", "__enter__", "__exit__")


def face(module: Any) -> dict[str, Any]:
    """Classes, their public members with signatures, and exceptions of `module`."""
    return {
        "classes": {name: members(getattr(module, name)) for name in CLASSES},
        "exceptions": {name: bases(getattr(module, name)) for name in EXCEPTIONS},
    }


def members(cls: type) -> dict[str, Any]:
    """Each public member: what it is, and its parameters if it is called."""
    found: dict[str, Any] = {}
    for name, member in vars(cls).items():
        if name.startswith("_") and name not in DUNDER:
            continue
        if isinstance(member, property):
            found[name] = {"kind": "property"}
        elif isinstance(member, staticmethod | classmethod):
            found[name] = {"kind": type(member).__name__, "parameters": parameters(member.__func__)}
        elif callable(member):
            found[name] = {"kind": "method", "parameters": parameters(member)}
        else:
            found[name] = {"kind": "value", "value": member}
    return found


def parameters(function: Any) -> list[dict[str, str]]:
    """Name, kind, default and annotation of each parameter, as text."""
    return [
        {
            "name": p.name,
            "kind": p.kind.name,
            "default": default(p.default),
            "annotation": str(p.annotation).replace('"', "'"),
        }
        for p in inspect.signature(function).parameters.values()
    ]


def default(value: Any) -> str:
    """A default as text, without addresses."""
    if value is inspect.Parameter.empty:
        return "-"
    return f"function {value.__name__}" if inspect.isfunction(value) else repr(value)


def bases(cls: type) -> list[str]:
    """Names of the bases, without object."""
    return [base.__name__ for base in cls.__mro__[1:] if base is not object]


if __name__ == "__main__":
    import gpt4all

    golden = {
        "provenance": {
            "package": "gpt4all",
            "version": "2.8.2",
            "wheel": "gpt4all-2.8.2-py3-none-manylinux1_x86_64.whl",
            "wheel_sha256": "c61e977afa72475c076211fd9b59a88334fc0062615be8c2f7716363a21fbafa",
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "made_by": "python tests/compat/gpt4all_face.py > tests/compat/gpt4all_face.json",
        },
        **face(gpt4all),
    }
    json.dump(golden, sys.stdout, indent=1)
    sys.stdout.write("\n")
