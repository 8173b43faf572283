"""From values to rows: medians with their spread, ratios, shares of the limit.

A limit is what this machine could do at most, from the bandwidth and the int8 operations that
were measured in the same run (`limit`). A ratio says how many times better Insula is, whichever
way the metric counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scenarios import Metric, Scenario
from weights import Model

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes a second, int8 operations a second (a multiply-add being two)."""

    bandwidth: float
    int8: float


@dataclass(kw_only=True)
class Taken:
    """What one engine gave in one scenario: values by round, or why there are none."""

    values: dict[int, dict[str, float]] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)  # by metric; "" is all of them
    facts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def ratio(
    mine: Mapping[int, float], theirs: Mapping[int, float], metric: Metric
) -> dict[str, float] | None:
    """How many times better `mine` is: of the medians, and the range over rounds that have both.

    None where nothing compares.
    """
    both = [n for n in mine if n in theirs]
    if not both or not all(mine.values()) or not all(theirs.values()):
        return None

    def better(a: float, b: float) -> float:
        return a / b if metric.higher_is_better else b / a

    middle = better(statistics.median(mine.values()), statistics.median(theirs.values()))
    each = [better(mine[n], theirs[n]) for n in both]
    return {"median": middle, "low": min(*each, middle), "high": max(*each, middle)}


def limit(scenario: Scenario, metric: Metric, model: Model, limits: Limits) -> float:
    """The best value that this machine allows, products by matrices alone."""
    s = scenario

    def step(rows: int, context: int) -> float:  # seconds in which each of `rows` gets a token
        read = model.streamed + rows * context * model.kv_bytes
        return max(read / limits.bandwidth, rows * 2 * model.weights / limits.int8)

    def prompt(tokens: int) -> float:  # seconds; the last layer is for one token only
        work = tokens * model.block_weights + model.head_weights
        return max(model.streamed / limits.bandwidth, 2 * work / limits.int8)

    def chats() -> float:  # tokens/s of all chats, their common prefix known
        asked = prompt(s.streams * s.question)
        steps = (s.generate - 1) * step(s.streams, s.prompt)
        return s.streams * s.generate / (asked + steps)

    match s.kind, metric.name:
        case "prefill", _:
            return s.prompt / prompt(s.prompt)
        case (("decode" | "streams"), _):
            return s.streams / step(s.streams, s.prompt)
        case "shared", "speed":
            return chats()
        case "shared", "first token, prefix new":
            return prompt(s.prompt + s.question)
        case ("shared", "first token, prefix known") | ("chat", "first token, last turn"):
            return prompt(s.question)
        case "chat", _:
            return float(s.question)
        case "start", _:
            return model.file_bytes / limits.bandwidth
        case _:  # memory: the file's weights, and the keys and values of what was said
            return (model.streamed + (s.prompt + s.generate) * model.kv_bytes) / 1e6


def rows(
    taken: Mapping[tuple[str, str], Taken],
    scenarios: Sequence[Scenario],
    labels: Sequence[str],
    model: Model,
    limits: Limits,
    facts: Row,
) -> list[Row]:
    """One row per scenario, metric and engine. taken: by engine's label and scenario's name."""
    made = []
    for s in scenarios:
        for metric in s.metrics:
            series = {
                label: {n: v[metric.name] for n, v in t.values.items() if metric.name in v}
                for label in labels
                if (t := taken.get((label, s.name))) is not None
            }
            best = limit(s, metric, model, limits)
            for label, mine in series.items():
                t = taken[label, s.name]
                row: Row = {
                    **facts,
                    "model": model.label,
                    "model_sha256": model.sha256,
                    "engine": label,
                    **t.facts,
                    "settings": t.options,
                    "scenario": s.name,
                    "kind": s.kind,
                    "size": _size(s),
                    "metric": metric.name,
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    "limit": _short(best),
                    "limits": {
                        "gb_per_second": round(limits.bandwidth / 1e9, 2),
                        "int8_gops": round(limits.int8 / 1e9, 1),
                    },
                }
                if mine:
                    row |= {k: _short(v) for k, v in spread(list(mine.values())).items()}
                    row["rounds"] = [_short(v) for v in mine.values()]
                    share = (
                        row["median"] / best if metric.higher_is_better else best / row["median"]
                    )
                    row["share"] = round(share, 4)
                    against = {
                        peer: r
                        for peer in series
                        if peer != label and (r := ratio(mine, series[peer], metric))
                    }
                    row["times_better"] = {
                        peer: {k: round(v, 3) for k, v in r.items()} for peer, r in against.items()
                    }
                else:
                    row["cannot"] = t.cannot.get(metric.name) or t.cannot.get("", "not measured")
                made.append(row)
    return made


def _size(s: Scenario) -> int:
    return s.streams if s.kind == "streams" else s.prompt


def _short(value: float) -> float:
    """Four digits are more than a figure is worth."""
    return float(f"{value:.4g}")
