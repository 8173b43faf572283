"""Log lines: one form, known fields, and nothing that a client wrote."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from insula.server import logs


@pytest.fixture
def stream():
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_with_known_fields_only(stream):
    logs.set_up(stream=stream)
    logs.get("insula.server").info("answered", model="m", ms=12, prompt="canary", messages=["x"])
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "answered",
        "level": "info",
        "logger": "insula.server",
        "model": "m",
        "ms": 12,
        "left_out": ["messages", "prompt"],
    }


def test_an_exception_is_its_type_and_place(stream):
    logs.set_up(stream=stream)
    try:
        raise ValueError("canary: what the client sent")
    except ValueError as error:
        logging.getLogger("uvicorn.error").error("Exception in %s", "app", exc_info=error)
        logs.get("insula.server").exception("failed")
    assert "canary" not in stream.getvalue()
    for line in lines(stream):
        assert line["error"] == "ValueError"
        assert line["where"].startswith("test_logs.py:")


def test_the_level_and_access_lines(stream):
    logs.set_up(stream=stream, level="warning")
    logging.getLogger("uvicorn.access").info('"GET /canary HTTP/1.1" 200')
    logs.get("insula.server").info("quiet")
    logs.get("insula.server").warning("loud", path="x" * 9999)
    (line,) = lines(stream)
    assert (line["event"], len(line["path"])) == ("loud", logs.LONGEST)


def test_text_for_people(stream):
    logs.set_up(form="text", stream=stream)
    logs.get("insula.server").info("loaded", model="a\n\x1b[31mb", seconds=2)
    said = stream.getvalue()
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert said.endswith("info    loaded model=a\\n\\x1b[31mb seconds=2\n")
