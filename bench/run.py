"""Insula and its peers, in turns, on one machine: `make bench`.

    python bench/run.py [--scenarios prefill,decode-128] [--models default,1b-q4_k_m]
                        [--engines insula,insula:avx2,xllamacpp] [--rounds 5] [--quick]

Every figure comes from a process of its own (`worker`). A round measures the machine's limits and
then, scenario by scenario, each engine once (A B C A B C …), so that a machine that slows down
slows everybody; what counts is the ratio of two medians of one run. Long scenarios run in every
second or fourth round. In the first round a peer runs with each of its settings, and goes on with
those that did best at the scenario.

Writes one JSON line per model, scenario, metric and engine to bench/results/, a picture per model
beside them, and the tables of the newest run into docs/performance.md and the READMEs.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from figures import Limits, Row, Taken, rows, spread
from installs import WHEELS, NotInstalledError, builds_here, own_python, python_of
from machine import commit, load, machine, pss
from peers import ENGINES
from plots import picture
from scenarios import QUICK, SCENARIOS, Scenario, choose
from table import SUMMARY, tables, write_summary, write_tables
from weights import RANDOM, ROOT, Model, find_model

from insula import _native

RESULTS = ROOT / "bench" / "results"
WORKER = Path(__file__).with_name("worker.py")
MODELS = ("default", "1b-q4_k_m")
ENGINES_HERE = ("insula", "insula:avx2", *WHEELS)
TIMEOUT = 1800
#: A load average above this says that others are at work; every row records what it was.
BUSY = 0.5
#: What a slow engine on two cores does, to say beforehand how long it may take.
PREFILL, DECODE = 90e9, 15e9  # weights multiplied a second, bytes read a second


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """An engine as it runs here. `why_not` is what the table says if it does not."""

    label: str
    engine: str
    python: Path | None = None
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    why_not: str = ""


def main() -> None:
    args = parse_arguments()
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    entrants = [entrant(name, args) for name in args.engines]
    for e in entrants:
        if e.why_not:
            say(f"{e.label}: {e.why_not}")
    models = [find_model(name, say) for name in args.models]
    busy = load()
    if busy > BUSY:
        say(f"the machine is busy (load {busy:.1f}): the figures will be low and uneven")
    expected = [estimate(args.scenarios, m, entrants, args.rounds) for m in models]
    whole = sum(expected)
    say(
        f"{len(models)} models, {len(args.scenarios)} scenarios, {len(entrants)} engines, "
        f"{args.rounds} rounds: some {whole / 60:.0f} minutes, at most {args.minutes}"
    )
    facts = {
        "run": stamp,
        "threads": args.threads,
        "rounds_asked": args.rounds,
        "machine": machine(),
        "load_before": round(busy, 2),
    }
    begun, done, found = time.monotonic(), 0.0, []
    for model, seconds in zip(models, expected, strict=True):
        done += seconds
        deadline = begun + args.minutes * 60 * done / whole
        found += bench(model, entrants, args, facts, deadline)
        if not args.dry_run:
            write(found, stamp)
    if args.dry_run:
        print(tables(found))


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenarios", type=names, default=[], help="names or kinds; all")
    parser.add_argument(
        "--models",
        type=names,
        default=None,
        help=f"{','.join(['default', *RANDOM])}, or paths; {','.join(MODELS)}",
    )
    parser.add_argument("--engines", type=names, default=None, help=",".join(ENGINES_HERE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=_native.cpu_info()["threads"])
    parser.add_argument("--minutes", type=int, default=180, help="no scenario begins later")
    parser.add_argument("--quick", action="store_true", help="a few tokens each, nothing written")
    parser.add_argument("--dry-run", action="store_true", help="print the tables, write nothing")
    parser.add_argument("--no-install", action="store_true", help="only peers that are here")
    parser.add_argument(
        "--build-llama-cpp", action="store_true", help="compile llama-cpp-python for this processor"
    )
    args = parser.parse_args(given)
    if args.quick:
        args.rounds, args.dry_run = 1, True
    args.models = args.models or (["default"] if args.quick else list(MODELS))
    args.engines = args.engines or list(ENGINES_HERE)
    if args.build_llama_cpp:
        args.engines += [f"llama-cpp-python:{build}" for build in builds_here()]
    for name in args.engines:
        if name.partition(":")[0] not in ENGINES:
            parser.error(f"--engines: found {name!r}; allowed: {', '.join(ENGINES)}")
    try:
        args.scenarios = choose(args.scenarios, QUICK if args.quick else SCENARIOS)
    except ValueError as error:
        parser.error(f"--scenarios: {error}")
    if min(args.rounds, args.threads, args.minutes) < 1:
        parser.error("--rounds, --threads and --minutes are 1 or more")
    return args


def entrant(name: str, args: argparse.Namespace) -> Entrant:
    """`engine` or `engine:variant`: a level of Insula, a build of llama-cpp-python."""
    engine, _, variant = name.partition(":")
    label = f"{engine} {variant}".strip()
    if engine == "insula":
        levels = _native.isa_levels()
        if variant and variant not in levels:
            why = f"this processor has {', '.join(levels)}"
            return Entrant(label=label, engine=engine, why_not=why)
        env = {"INSULA_ISA": variant} if variant else {}
        return Entrant(label=label, engine=engine, python=own_python(), env=env)
    if engine == "llama-cpp-python" and not variant:
        variant, label = "native", f"{engine} native"
    try:
        python = python_of(engine, variant, install=not args.no_install, say=say)
    except NotInstalledError as error:
        return Entrant(label=label, engine=engine, why_not=clean(str(error)))
    return Entrant(label=label, engine=engine, python=python)


def bench(
    model: Model,
    entrants: Sequence[Entrant],
    args: argparse.Namespace,
    facts: Row,
    deadline: float,
) -> list[Row]:
    """All rounds of one model."""
    taken = {(e.label, s.name): Taken() for s in args.scenarios for e in entrants}
    limits: list[Limits] = []
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.json"
        words.write_text(json.dumps(model.words), encoding="utf-8")
        path = Path(folder) / "model.gguf"  # some engines go by the name's end
        path.symlink_to(model.path.resolve())
        for n in range(args.rounds):
            limits.append(measure_limits(args.threads))
            for s in args.scenarios:
                if n % s.every:
                    continue
                if time.monotonic() > deadline:
                    say(f"{model.label}: the time is up; {s.name} has {n} rounds")
                    continue
                for e in entrants:
                    turn = Turn(model=model, path=path, words=words, threads=args.threads, number=n)
                    turn.take(e, s, taken)
                say(f"{model.label}, round {n + 1} of {args.rounds}, {s.name}: {told(s, taken)}")
    for (label, _), t in taken.items():
        if not t.values and not t.cannot:
            t.cannot[""] = "no time was left"
        if t.facts and label.partition(" ")[0] == "insula":
            t.facts["commit"] = commit()
    middle = Limits(
        bandwidth=spread([x.bandwidth for x in limits])["median"],
        int8=spread([x.int8 for x in limits])["median"],
    )
    return rows(taken, args.scenarios, [e.label for e in entrants], model, middle, facts)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One engine's turn at one scenario."""

    model: Model
    path: Path
    words: Path
    threads: int
    number: int

    def take(self, e: Entrant, s: Scenario, taken: dict[tuple[str, str], Taken]) -> None:
        """Measure, unless it is known that it cannot be."""
        t = taken[e.label, s.name]
        if e.why_not:
            t.cannot[""] = e.why_not
        elif s.longest > self.model.context:
            t.cannot[""] = f"the model was trained for {self.model.context:,} tokens"
        if "" in t.cannot:
            return
        variants = ENGINES[e.engine].variants
        if self.number and t.values:
            variants = (t.options,)
        elif s.like and (like := taken.get((e.label, s.like))) and like.values:
            variants = (like.options,)
        tried = [(v, self._run(e, s, v)) for v in variants]
        good = [(v, found) for v, found in tried if "values" in found]
        if not good:
            t.cannot[""] = tried[0][1]["cannot"]
            return
        first = s.metrics[0]
        pick = max if first.higher_is_better else min
        t.options, found = pick(good, key=lambda pair: pair[1]["values"].get(first.name, 0.0))
        t.values[self.number] = found["values"]
        t.cannot |= found["cannot"]
        t.facts = {k: found[k] for k in ("version", "isa")}
        if found["turns"]:
            t.facts["turns"] = found["turns"]

    def _run(self, e: Entrant, s: Scenario, options: dict[str, Any]) -> dict[str, Any]:
        """One process. Of a peer a failure is what the table says; of Insula it is the end."""
        given = {
            "engine": e.engine,
            "scenario": dataclasses.asdict(s),
            "model": str(self.path),
            "words": str(self.words),
            "threads": self.threads,
            "options": options,
            "seed": self.number,
        }
        assert e.python is not None
        memory = s.kind == "memory"
        found, peak = process(e.python, given, e.env, watch=memory)
        if "failed" in found:
            if e.engine == "insula":
                raise SystemExit(f"{e.label} failed at {s.name}:\n{found['failed']}")
            return {"cannot": f"failed: {reason(found['failed'])}"}
        if memory and "values" in found:
            found["values"]["peak"] = (peak or found["peak_rss"]) / 1e6
        return found


def process(
    python: Path, given: dict[str, Any], env: dict[str, str], *, watch: bool = False
) -> tuple[dict[str, Any], int]:
    """A worker's answer, or what it `failed` with; and the most memory that it had, if watched."""
    given["started"] = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [python, WORKER, json.dumps(given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env={**os.environ, **env},
        ) as child,
    ):
        peak = 0
        while watch and child.poll() is None and time.monotonic() < given["started"] + TIMEOUT:
            peak = max(peak, pss(child.pid))
            time.sleep(0.02)
        try:
            out, _ = child.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            return {"failed": f"no answer within {TIMEOUT // 60} minutes"}, peak
        complaints.seek(0)
        said = complaints.read()
    if child.returncode != 0 or not out.strip():
        return {"failed": said[-20000:] or f"exit status {child.returncode}"}, peak
    answer: dict[str, Any] = json.loads(out)
    return answer, peak


def measure_limits(threads: int) -> Limits:
    found, _ = process(own_python(), {"engine": "limits", "threads": threads}, {})
    if "failed" in found:
        raise SystemExit(found["failed"])
    return Limits(**found)


def estimate(
    scenarios: Sequence[Scenario], model: Model, entrants: Sequence[Entrant], n_rounds: int
) -> float:
    """Seconds that a run may take."""
    total = 0.0
    for s in scenarios:
        if s.longest > model.context:
            continue
        prompts = s.prompt + s.streams * s.turns * s.question
        if s.kind == "shared":
            prompts += 2 * s.question
        elif not s.reuses:
            prompts = s.streams * s.prompt * (2 if s.prompt <= 512 else 1)
        steps = s.turns * s.generate * (1 + s.streams / 8)
        once = 3 + prompts * model.weights / PREFILL + steps * model.streamed / DECODE
        for e in entrants:
            if e.why_not:
                continue
            tries = len(ENGINES[e.engine].variants) - 1 if not s.like else 0
            share = 0.5 if e.engine == "insula" else 1.0
            total += share * once * (-(-n_rounds // s.every) + tries)
    return total + n_rounds * 3


def told(s: Scenario, taken: dict[tuple[str, str], Taken]) -> str:
    """How far a scenario is, on one line."""
    parts = []
    for (label, name), t in taken.items():
        if name != s.name:
            continue
        values = [v[m.name] for m in s.metrics[-1:] for v in t.values.values() if m.name in v]
        parts.append(f"{label} {spread(values)['median']:.4g}" if values else f"{label} –")
    return ", ".join(parts) + f" {s.metrics[-1].unit}"


def write(found: list[Row], stamp: str) -> None:
    """Rows, pictures, pages."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(row["model"] for row in found):
        mine = [row for row in found if row["model"] == name]
        path = RESULTS / f"{re.sub('[^A-Za-z0-9_.-]', '-', name)}.svg"
        path.write_text(picture(mine, f"{name}, {stamp}"), encoding="utf-8")
        for row in mine:
            row["picture"] = path.relative_to(ROOT).as_posix()
    out = RESULTS / f"{stamp}.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    write_tables(found, ROOT / "docs" / "performance.md")
    for page in SUMMARY:
        write_summary(found, ROOT / page)
    say(f"wrote {out.relative_to(ROOT)}, its pictures, docs/performance.md and the READMEs")


def reason(said: str) -> str:
    """Why a process failed: the loader's own word, or the last line."""
    lines = [line for line in said.splitlines() if line.strip()] or [said]
    loading = (line.partition("error loading model: ")[2] for line in lines)
    return clean(next(filter(None, loading), lines[-1]))


def clean(text: str) -> str:
    short = re.sub(r"(?:[A-Za-z]:)?[/\\][^\s'\":]*[/\\]", "", text).strip().replace("|", "/")
    return short if len(short) <= 160 else f"{short[:159]}…"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
