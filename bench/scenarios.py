"""What is measured: the list, and how each is done with any engine.

A scenario runs in a process of its own and gives one value for each of its metrics. Prompts are
random words of the vocabulary, one token each, so that engines that take only text get the same
tokens. Everything is greedy, and the end of an answer is ignored.

Runs in the peers' environment too: nothing here imports Insula.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

WARM_UP = 64
#: Prompts up to here are measured twice in one process.
SHORT = 512


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a scenario."""

    name: str
    unit: str
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What to do. Sizes in tokens.

    prompt: of each stream; what all have in common where it is shared. question: what each adds
    to that, or says in a turn. every: it runs in every so manieth round (the long ones). like: the
    scenario whose choice of settings it takes, because trying costs too much here.
    """

    name: str
    kind: str
    prompt: int = 0
    question: int = 0
    generate: int = 1
    streams: int = 1
    turns: int = 1
    every: int = 1
    like: str = ""

    @property
    def longest(self) -> int:
        """Most tokens of one sequence."""
        return self.prompt + self.turns * (self.question + self.generate)

    @property
    def room(self) -> int:
        """Tokens that all sequences take together, nothing shared."""
        return self.streams * self.longest

    @property
    def reuses(self) -> bool:
        """What an engine remembers of earlier prompts is part of what is measured."""
        return self.kind in ("shared", "chat")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return METRICS[self.kind]


SPEED = Metric(name="speed", unit="tokens/s")
METRICS: dict[str, tuple[Metric, ...]] = {
    "prefill": (SPEED,),
    "decode": (SPEED,),
    "streams": (SPEED,),
    "shared": (
        Metric(name="first token, prefix new", unit="s", higher_is_better=False),
        Metric(name="first token, prefix known", unit="s", higher_is_better=False),
        SPEED,
    ),
    "chat": (
        Metric(name="first token, last turn", unit="s", higher_is_better=False),
        Metric(name="computed, last turn", unit="tokens", higher_is_better=False),
    ),
    "start": (Metric(name="first token", unit="s", higher_is_better=False),),
    "memory": (Metric(name="peak", unit="MB", higher_is_better=False),),
}

SCENARIOS: tuple[Scenario, ...] = (
    *(Scenario(name=f"prefill-{n}", kind="prefill", prompt=n) for n in (128, 512)),
    Scenario(name="prefill-4096", kind="prefill", prompt=4096, every=2, like="prefill-512"),
    Scenario(name="decode-128", kind="decode", prompt=128, generate=64),
    Scenario(name="decode-4096", kind="decode", prompt=4096, generate=64, every=2),
    Scenario(
        name="decode-16384", kind="decode", prompt=16384, generate=64, every=4, like="decode-4096"
    ),
    *(
        Scenario(name=f"streams-{n}", kind="streams", prompt=64, generate=48, streams=n)
        for n in (1, 2, 4, 8)
    ),
    *(
        Scenario(
            name=f"streams-{n}",
            kind="streams",
            prompt=64,
            generate=48,
            streams=n,
            every=2,
            like="streams-8",
        )
        for n in (16, 32)
    ),
    Scenario(
        name="shared-prefix",
        kind="shared",
        prompt=2000,
        question=16,
        generate=24,
        streams=32,
        every=2,
        like="streams-8",
    ),
    Scenario(name="chat", kind="chat", question=100, generate=32, turns=5, like="decode-128"),
    Scenario(name="start-up", kind="start", prompt=16, like="decode-128"),
    Scenario(name="memory", kind="memory", prompt=512, generate=64, like="decode-128"),
)

#: The same paths in a few tokens each, to see that all of it works.
QUICK: tuple[Scenario, ...] = (
    Scenario(name="prefill-32", kind="prefill", prompt=32),
    Scenario(name="decode-32", kind="decode", prompt=32, generate=8),
    Scenario(name="streams-1", kind="streams", prompt=16, generate=8),
    Scenario(name="streams-3", kind="streams", prompt=16, generate=12, streams=3),
    Scenario(name="shared-prefix", kind="shared", prompt=96, question=4, generate=6, streams=3),
    Scenario(name="chat", kind="chat", question=12, generate=6, turns=3),
    Scenario(name="start-up", kind="start", prompt=8),
    Scenario(name="memory", kind="memory", prompt=32, generate=4),
)


def choose(names: Sequence[str], scenarios: Sequence[Scenario] = SCENARIOS) -> list[Scenario]:
    """Scenarios by name or kind, in the list's order; no names: all. ValueError names the rest."""
    known = {s.name for s in scenarios} | {s.kind for s in scenarios}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"found {unknown[0]!r}; allowed: {', '.join(s.name for s in scenarios)}, "
            f"or {', '.join(dict.fromkeys(s.kind for s in scenarios))}"
        )
    return [s for s in scenarios if not names or s.name in names or s.kind in names]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an engine did with one prompt.

    times: seconds from asking until each token. computed: prompt tokens that no cache had.
    prefill, decode: seconds by the engine's own clock, where it has one: of the prompt, and of
    the tokens after the first.
    """

    ids: list[int]
    times: list[float]
    computed: int
    prefill: float | None = None
    decode: float | None = None

    @property
    def prefill_seconds(self) -> float:
        return self.times[0] if self.prefill is None else self.prefill

    @property
    def decode_seconds(self) -> float:
        return self.times[-1] - self.times[0] if self.decode is None else self.decode


class Engine(Protocol):
    """What a scenario asks of a peer. See `peers`."""

    isa: str

    def ask(self, prompts: list[list[int]], generate: int, *, reuse: bool) -> list[Answer]:
        """Answer all prompts together. reuse: a cache of earlier prompts may help."""
        ...


class CannotError(Exception):
    """The engine has no such thing; the message is what the table says."""


class Words:
    """Random prompts of ordinary words, the same for every engine."""

    def __init__(self, ids: Sequence[int], seed: int) -> None:
        self._ids = ids
        self._random = random.Random(seed)

    def __call__(self, n: int) -> list[int]:
        return self._random.choices(self._ids, k=n)


def run(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    """Values by metric, and `turns` where there are several."""
    return _RUN[scenario.kind](scenario, engine, words)


def _prefill(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    engine.ask([words(WARM_UP)], 2, reuse=False)
    values = []
    for _ in range(_repeats(scenario)):
        [answer] = engine.ask([words(scenario.prompt)], 1, reuse=False)
        values.append(answer.computed / answer.prefill_seconds)
    return {"speed": statistics.median(values)}


def _decode(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    engine.ask([words(WARM_UP)], 2, reuse=False)
    values = []
    for _ in range(_repeats(scenario)):
        [answer] = engine.ask([words(scenario.prompt)], scenario.generate, reuse=False)
        values.append((len(answer.times) - 1) / answer.decode_seconds)
    return {"speed": statistics.median(values)}


def _streams(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    engine.ask([words(WARM_UP)], 2, reuse=False)
    prompts = [words(scenario.prompt) for _ in range(scenario.streams)]
    return {
        "speed": together([a.times for a in engine.ask(prompts, scenario.generate, reuse=False)])
    }


def together(times: list[list[float]]) -> float:
    """Tokens/s of all streams while every one of them decodes: after the last one's first token
    and until the first one's last."""
    begin, end = max(t[0] for t in times), min(t[-1] for t in times)
    if end <= begin:
        raise CannotError("its streams do not run together")
    return sum(begin < at <= end for t in times for at in t) / (end - begin)


def _shared(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    engine.ask([words(WARM_UP)], 2, reuse=False)
    system = words(scenario.prompt)

    def chat() -> list[int]:
        return system + words(scenario.question)

    [new] = engine.ask([chat()], 1, reuse=True)
    [known] = engine.ask([chat()], 1, reuse=True)
    found: dict[str, Any] = {
        "first token, prefix new": new.times[0],
        "first token, prefix known": known.times[0],
    }
    try:
        chats = [chat() for _ in range(scenario.streams)]
        answers = engine.ask(chats, scenario.generate, reuse=True)
    except CannotError as reason:
        return {**found, "cannot": {"speed": str(reason)}}
    found["speed"] = sum(len(a.times) for a in answers) / max(a.times[-1] for a in answers)
    return found


def _chat(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    engine.ask([words(WARM_UP)], 2, reuse=False)
    history: list[int] = []
    turns = []
    for _ in range(scenario.turns):
        history += words(scenario.question)
        [answer] = engine.ask([history], scenario.generate, reuse=True)
        turns.append({"first_token": answer.times[0], "computed": answer.computed})
        history = history + answer.ids
        if not answer.ids:
            raise CannotError("does not name its tokens")
    return {
        "first token, last turn": turns[-1]["first_token"],
        "computed, last turn": turns[-1]["computed"],
        "turns": turns,
    }


def _start(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    engine.ask([words(scenario.prompt)], 1, reuse=False)
    return {}  # the clock is the worker's


def _memory(scenario: Scenario, engine: Engine, words: Words) -> dict[str, Any]:
    engine.ask([words(scenario.prompt)], scenario.generate, reuse=False)
    return {}  # measured from outside


def _repeats(scenario: Scenario) -> int:
    return 2 if scenario.prompt <= SHORT else 1


_RUN: dict[str, Callable[[Scenario, Engine, Words], dict[str, Any]]] = {
    "prefill": _prefill,
    "decode": _decode,
    "streams": _streams,
    "shared": _shared,
    "chat": _chat,
    "start": _start,
    "memory": _memory,
}
