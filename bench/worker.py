"""One scenario with one engine, in a process of its own: `run` starts these, in turns.

    python bench/worker.py '{"engine": "insula", "scenario": {…}, "model": "…", …}'

Prints one JSON line: `values` by metric, `cannot` by metric or as a whole, and what ran. It runs
in the engine's own environment, so it imports nothing but the standard library and the engine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import peak_rss
from peers import ENGINES, Job
from scenarios import CannotError, Scenario, Words, run


def main() -> None:
    given = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print is not our answer
    limited = given["engine"] == "limits"
    found = limits(given["threads"]) if limited else measure(given)
    out.write(json.dumps(found) + "\n")
    out.flush()
    os._exit(0)  # some engines crash or wait while they are taken apart; nothing is left to do


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Open the engine and run. `started` is the parent's time.monotonic()."""
    scenario = Scenario(**given["scenario"])
    texts = {int(i): t for i, t in json.loads(Path(given["words"]).read_text("utf-8")).items()}
    row = ENGINES[given["engine"]]
    job = Job(
        model=Path(given["model"]),
        scenario=scenario,
        threads=given["threads"],
        options=given["options"],
        words=texts,
    )
    try:
        engine = row.engine(job)
        values = run(scenario, engine, Words(list(texts), given["seed"]))
    except CannotError as reason:
        return {"cannot": str(reason)}
    if scenario.kind == "start":
        values["first token"] = time.monotonic() - given["started"]
    return {
        "values": values,
        "cannot": values.pop("cannot", {}),
        "turns": values.pop("turns", None),
        "isa": engine.isa,
        "version": version(row.package),
        "peak_rss": peak_rss(),
    }


def limits(threads: int) -> dict[str, Any]:
    """What the machine can do: bytes a second that are read, int8 operations a second."""
    from insula import _native

    bandwidth = max(_native.measure_bandwidth(threads, 1024) for _ in range(2))
    return {"bandwidth": bandwidth * 1e9, "int8": _native.measure_int8(threads) * 1e9}


if __name__ == "__main__":
    main()
