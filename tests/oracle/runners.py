"""The runners that must agree with the goldens, by name, and how far each may be off.

A runner is made by `make(graph, source, n_pages)`; it has the face that `engine` expects.
Tolerances are absolute, on logits whose spread is between 0.8 and 4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunnerKind:
    name: str
    make: Callable[..., Any]
    tolerance: float


def reference(graph, source, n_pages):
    from insula.ops.reference import ReferenceRunner

    return ReferenceRunner(graph, source, n_pages=n_pages)


RUNNERS = [RunnerKind(name="reference", make=reference, tolerance=1e-4)]
