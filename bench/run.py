"""Insula and its peers, in turns, on one machine: `make bench`.

    python bench/run.py [--models default,1b-q4_k_m,1b-q8_0] [--isa avx512,avx2] [--rounds 5]

Every figure comes from a process of its own. A round runs the memory-bandwidth probe, then each
subject once, and the next round runs them again (A B C A B C …), so that a machine that slows
down slows everybody; what counts is the ratio of two medians of one run. A peer's variants are
tried first and the best one is taken, for prefill and decode apart.

Writes one JSON line per model, subject and metric to bench/results/, and the tables of the
newest run into docs/performance.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import SUBJECTS, Job, Subject, machine
from table import tables, write_tables

from insula.formats.gguf import GGUFFile
from insula.hub.catalog import DEFAULT_MODEL
from insula.hub.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
METRICS = ("prefill", "decode")
RANDOM_MODELS = {"1b-q4_k_m": "Q4_K_M", "1b-q8_0": "Q8_0"}
TIMEOUT = 1800
#: A load average above this says that others are at work; every row records what it was.
BUSY = 0.5


@dataclass(frozen=True, kw_only=True)
class Model:
    """A file to measure on. `streamed` bytes are read once for every generated token."""

    label: str
    path: Path
    sha256: str
    n_vocab: int
    streamed: int


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A subject with one set of settings. `label` is what tables call it."""

    label: str
    subject: Subject
    env: dict[str, str]
    options: dict[str, Any]


def main() -> None:
    args = parse_arguments()
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    RESULTS.mkdir(parents=True, exist_ok=True)
    out = RESULTS / f"{stamp}.jsonl"
    rows: list[dict[str, Any]] = []
    busy = load()
    if busy > BUSY:
        say(f"the machine is busy (load {busy:.1f}): the figures will be low and uneven")
    for name in args.models:
        model = find_model(name)
        say(f"{model.label}: choosing each peer's settings")
        entrants = [entrant for e in field(args) for entrant in settle(e, model, args)]
        samples = take_turns(entrants, model, args)
        rows += [
            {**row, "load_before": round(busy, 2)}
            for row in summarize(samples, entrants, model, args, stamp)
        ]
        if not args.dry_run:
            out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if args.dry_run:
        print(tables(rows))
        return
    write_tables(rows, ROOT / "docs" / "performance.md")
    say(f"wrote {out.relative_to(ROOT)} and docs/performance.md")


def parse_arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=names, default=["default", *RANDOM_MODELS])
    parser.add_argument("--isa", type=names, default=["", "avx2"], help="empty: the best one")
    parser.add_argument("--peers", type=names, default=["xllamacpp"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="runs within one process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--dry-run", action="store_true", help="print the tables, write nothing")
    args = parser.parse_args()
    unknown = [p for p in args.peers if p not in SUBJECTS]
    if unknown:
        parser.error(f"--peers: found {unknown[0]!r}; allowed: {', '.join(SUBJECTS)}")
    return args


def field(args: argparse.Namespace) -> Iterator[Entrant]:
    """Insula at each level, and the peers that are installed."""
    for isa in args.isa or [""]:
        yield Entrant(
            label=f"insula {isa}".strip(),
            subject=SUBJECTS["insula"],
            env={"INSULA_ISA": isa} if isa else {},
            options={},
        )
    for name in args.peers:
        if SUBJECTS[name].installed:
            yield Entrant(label=name, subject=SUBJECTS[name], env={}, options={})
        else:
            say(f"{name} is not installed: left out")


def settle(entrant: Entrant, model: Model, args: argparse.Namespace) -> Iterator[Entrant]:
    """The entrant with its best settings: one, or one per metric where they differ."""
    variants = entrant.subject.variants
    if len(variants) == 1:
        yield entrant
        return
    tried = [(v, measure(entrant, model, args, options=v)) for v in variants]
    best = {m: max(tried, key=lambda t: statistics.median(t[1][m]))[0] for m in METRICS}
    for metric in METRICS:
        say(f"  {entrant.label}: {best[metric]} is best at {metric}")
    if best["prefill"] == best["decode"]:
        yield Entrant(**{**vars(entrant), "options": best["prefill"]})
        return
    for metric in METRICS:
        yield Entrant(**{**vars(entrant), "options": {**best[metric], "only": metric}})


def take_turns(
    entrants: list[Entrant], model: Model, args: argparse.Namespace
) -> dict[str, dict[str, list[Any]]]:
    """All rounds. Samples by label and metric, one median per process."""
    samples: dict[str, dict[str, list[Any]]] = {}
    probe = Entrant(label="bandwidth", subject=SUBJECTS["bandwidth"], env={}, options={})
    for n in range(args.rounds):
        say(f"{model.label}: round {n + 1} of {args.rounds}")
        for entrant in (probe, *entrants):
            figures = measure(entrant, model, args, options=entrant.options)
            mine = samples.setdefault(entrant.label, {})
            only = entrant.options.get("only")
            for key, value in figures.items():
                if key in METRICS and only in (None, key):
                    mine.setdefault(key, []).append(statistics.median(value))
                elif key not in METRICS:
                    mine.setdefault(key, []).append(value)
    return samples


def measure(
    entrant: Entrant, model: Model, args: argparse.Namespace, *, options: dict[str, Any]
) -> dict[str, Any]:
    """One process. A failure is the bench's failure: a missing figure would bend the ratio."""
    job = Job(
        subject=entrant.subject.name,
        model=str(model.path),
        threads=args.threads,
        prompt=args.prompt,
        context=args.context,
        decode=args.decode,
        repeats=args.repeats,
        options={**options, "n_vocab": model.n_vocab},
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("peers.py")), json.dumps(vars(job))],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, **entrant.env},
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{entrant.label} failed on {model.label}:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def summarize(
    samples: dict[str, dict[str, list[Any]]],
    entrants: list[Entrant],
    model: Model,
    args: argparse.Namespace,
    stamp: str,
) -> list[dict[str, Any]]:
    """One row per subject and metric: median, spread, ratio to each peer, share of the limit."""
    limit = statistics.median(samples["bandwidth"]["bandwidth"])
    peers = [e.label for e in entrants if e.subject.name != "insula"]
    rows = []
    for label in dict.fromkeys(e.label for e in entrants):
        mine = samples[label]
        entrant = next(e for e in entrants if e.label == label)
        for metric in METRICS:
            median = statistics.median(mine[metric])
            row = {
                "run": stamp,
                "model": model.label,
                "model_sha256": model.sha256,
                "subject": label,
                "version": entrant.subject.version,
                "commit": commit() if entrant.subject.name == "insula" else None,
                "settings": {
                    e.options.get("only", "all"): {
                        k: v for k, v in e.options.items() if k != "only"
                    }
                    for e in entrants
                    if e.label == label
                },
                "isa": mine["isa"][0],
                "threads": args.threads,
                "metric": metric,
                "tokens": args.prompt if metric == "prefill" else args.decode,
                "at_context": 0 if metric == "prefill" else args.context,
                "tokens_per_second": round(median, 2),
                "low": round(min(mine[metric]), 2),
                "high": round(max(mine[metric]), 2),
                "rounds": [round(x, 2) for x in mine[metric]],
                "ratio": {
                    peer: round(median / statistics.median(samples[peer][metric]), 3)
                    for peer in dict.fromkeys(peers)
                    if peer != label
                },
                "peak_bytes": max(mine["peak_bytes"]),
                "bandwidth_gb_per_second": round(limit, 2),
                "machine": machine(),
            }
            if metric == "decode":
                row["gb_per_second"] = round(median * model.streamed / 1e9, 2)
                row["share_of_bandwidth"] = round(median * model.streamed / 1e9 / limit, 3)
            rows.append(row)
            say(f"  {label:16} {metric:8} {median:9.1f} tokens/s  {row['ratio']}")
    return rows


def find_model(name: str) -> Model:
    """`default`, one of RANDOM_MODELS (made if need be), or a path or name that Insula knows."""
    if name in RANDOM_MODELS:
        path = ROOT / "build" / "bench" / f"random-{name}.gguf"
        if not path.exists():
            make_random_model(path, RANDOM_MODELS[name])
    else:
        path = resolve(DEFAULT_MODEL if name == "default" else name, allow_download=True)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    with GGUFFile.open(path) as gguf:
        sizes = {t.name: t.nbytes for t in gguf.tensors.values()}
        n_vocab = int(gguf.tensors["token_embd.weight"].shape[0])
        label = str(gguf.metadata.get("general.name", name)) if name != "default" else DEFAULT_MODEL
    streamed = sum(sizes.values())
    if "output.weight" in sizes:  # else the embedding is the last layer too, and read whole
        streamed -= sizes["token_embd.weight"]
    return Model(
        label=name if name in RANDOM_MODELS else label,
        path=path,
        sha256=digest.hexdigest(),
        n_vocab=n_vocab,
        streamed=streamed,
    )


def make_random_model(path: Path, quantization: str) -> None:
    """1.07B parameters of the Llama shape, seeded; speed does not depend on their values."""
    say(f"making {path.name} (once)")
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "make_random_model.py"),
            str(path),
            "--vocab",
            str(resolve(DEFAULT_MODEL, allow_download=True)),
            "--format",
            quantization,
        ],
        check=True,
    )


def load() -> float:
    """Programs that wanted a core in the last minute, besides what little we did."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def commit() -> str:
    """The tree's commit, with a plus if it has changes."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
