"""What a server is told when it starts, as plain data. Who reads it from where is the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of the server. Bytes and seconds.

    samples: of one prompt. prompts: in one request. inputs: texts of one embedding request.
    buffered: of an answer that its reader does not take; stall: how long nothing may be taken.
    """

    body: int = 10 << 20
    head: int = 16 << 10
    json_depth: int = 64
    samples: int = 8
    prompts: int = 128
    inputs: int = 2048
    buffered: int = 256 << 10
    stall: float = 30.0
    head_time: float = 10.0
    body_time: float = 30.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """models: paths, or names as `insula list` shows them; the first is the default where a route
    has no model to name. only: nothing but those; otherwise the store's too, when asked for.

    memory: bytes for all loaded models together, None: what the machine has free.
    keep_alive: seconds that an unused model stays loaded, None: for ever.
    max_running: requests that one model advances together. max_waiting: those that may wait for
    their turn, of all models; more are sent away at once.
    load: options of `insula.LLM` for every model; per_model: more of them, by the model's name.
    grace: seconds that running answers have to end when the server stops.
    """

    models: tuple[str, ...] = ()
    only: bool = False
    memory: int | None = None
    keep_alive: float | None = 300.0
    max_running: int = 16
    max_waiting: int = 128
    load: Mapping[str, Any] = field(default_factory=dict)
    per_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grace: float = 25.0
    limits: Limits = field(default_factory=Limits)
