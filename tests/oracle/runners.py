"""The runners that must agree with the goldens and the float32 forward, by name.

A runner is made by `make(graph, source, n_pages=...)`; it has the face that `engine` expects.
Tolerances are absolute, on logits of float32 models whose spread is between 0.8 and 4.3: keys
and values in float16 cost up to a hundredth of that, in int8 more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from insula.engine.runner import NativeRunner
from insula.ops.reference import ReferenceRunner


@dataclass(frozen=True, kw_only=True)
class RunnerKind:
    name: str
    make: Callable[..., Any]
    tolerance: float


REFERENCE = RunnerKind(name="reference", make=ReferenceRunner, tolerance=1e-4)
NATIVE = RunnerKind(name="native", make=NativeRunner, tolerance=5e-2)
NATIVE_F32_KV = RunnerKind(
    name="native-f32-kv", make=partial(NativeRunner, kv_type="f32"), tolerance=1e-3
)
NATIVE_INT8_KV = RunnerKind(
    name="native-int8-kv", make=partial(NativeRunner, kv_type="int8"), tolerance=1.0
)
RUNNERS = [REFERENCE, NATIVE, NATIVE_F32_KV, NATIVE_INT8_KV]
