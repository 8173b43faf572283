"""The counters of /metrics, in Prometheus' words. Names are an interface: do not rename them.

Owns one registry per server. No prompt, key or address is ever a label; models are labels, and only
those that are served have names.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from insula.server.admission import Admission
from insula.server.models import ModelEvent, Models
from insula.types import Report

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEP_SECONDS = (0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2)


class Metrics:
    """See the module."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, models: Models, admission: Admission) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Gauges(models, admission))
        self.requests = Counter(
            "insula_requests", "Answers by route and status", ["route", "status"], registry=registry
        )
        self.refused = Counter(
            "insula_refused", "Requests sent away unanswered", ["reason"], registry=registry
        )
        self.ended = Counter(
            "insula_answers",
            "Answers by their end: ended, left, stalled",
            ["end"],
            registry=registry,
        )
        tokens = "Tokens of prompts, of them from the prefix cache, and of completions"
        self.tokens = Counter("insula_tokens", tokens, ["model", "kind"], registry=registry)
        self.queue = Histogram(
            "insula_queue_seconds", "Until the first step", buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "insula_time_to_first_token_seconds",
            "From the request to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter = Histogram(
            "insula_inter_token_seconds",
            "Mean time between an answer's tokens",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.loads = Counter(
            "insula_model_events", "Loads and unloads", ["model", "kind"], registry=registry
        )
        self.load_seconds = Histogram(
            "insula_model_load_seconds", "Time to load", buckets=_SECONDS, registry=registry
        )

    def answered(self, model: str, report: Report) -> None:
        """One completion has ended."""
        self.tokens.labels(model, "prompt").inc(report.prompt_tokens)
        self.tokens.labels(model, "cached").inc(report.cached_tokens)
        self.tokens.labels(model, "completion").inc(report.completion_tokens)
        self.queue.observe(report.queue_seconds)
        if report.time_to_first_token > 0:
            self.first.observe(report.time_to_first_token)
        if report.decode_tokens_per_second > 0:
            self.inter.observe(1 / report.decode_tokens_per_second)

    def model_event(self, event: ModelEvent) -> None:
        self.loads.labels(event.model, event.kind).inc()
        if event.kind == "loaded":
            self.load_seconds.observe(event.seconds)

    def text(self) -> bytes:
        """What a scrape is given."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is true at the moment of a scrape."""

    def __init__(self, models: Models, admission: Admission) -> None:
        self._models = models
        self._admission = admission

    def describe(self) -> list[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        here = GaugeMetricFamily("insula_requests_here", "Sequences admitted: running or waiting")
        here.add_metric([], self._admission.inside)
        yield here
        most = GaugeMetricFamily("insula_requests_most", "How many of them there may be")
        most.add_metric([], self._admission.capacity)
        yield most
        batch = GaugeMetricFamily(
            "insula_sequences",
            "In the engine: running in the batch, or queued",
            labels=["model", "state"],
        )
        pages = GaugeMetricFamily(
            "insula_kv_pages", "Pages of KV cache by use", labels=["model", "state"]
        )
        memory = GaugeMetricFamily(
            "insula_model_bytes", "What a loaded model counts as", labels=["model"]
        )
        for name, loaded in list(self._models.loaded.items()):
            memory.add_metric([name], loaded.bytes)
            now = loaded.llm.llm.activity
            if now is None:
                continue
            batch.add_metric([name, "running"], now.running)
            batch.add_metric([name, "waiting"], now.waiting)
            pages.add_metric([name, "used"], now.pages_in_use)
            pages.add_metric([name, "cached"], now.pages_cached)
            pages.add_metric([name, "all"], now.pages)
        yield from (batch, pages, memory)
