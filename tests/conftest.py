"""What tests of several rooms stand on: a tiny model that is made here, and nobody's settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from insula import LLM

# A shell's background job, as many a CI is, starts with SIGINT ignored, and its children inherit
# that: the tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Timings never decide a test: a busy machine is no failure.
# On a desk examples are new each time; where a change is judged they are the same each time, so
# that it is the change that fails. What a desk finds becomes an @example.
settings.register_profile(
    "insula",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("insula")

#: Rooms whose slow tests take minutes each: builds, fuzzers, wheels, other engines.
LONG = {"packaging", "native", "oracle"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, or one worker would still be at them when the other has done the rest."""
    items.sort(key=lambda i: not (i.get_closest_marker("slow") and i.path.parent.name in LONG))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 320 tokens and 512 of context, with a chat template."""
    from tiny_chat_model import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def shared_llm(tiny_model: Path) -> Iterator[LLM]:
    """The tiny model, loaded once. For tests that leave no setting behind."""
    from insula import LLM

    with LLM(tiny_model) as llm:
        yield llm
