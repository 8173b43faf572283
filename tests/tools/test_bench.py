"""The bench's own arithmetic and its pages; and one scenario from end to end. No timing decides."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import run
from figures import Limits, Taken, limit, ratio, rows, spread
from machine import pss
from plots import picture
from scenarios import QUICK, SCENARIOS, Answer, CannotError, Metric, Scenario, Words, choose
from scenarios import run as run_scenario
from table import BENCH, README, best_peer, number, tables, write_summary, write_tables
from weights import Model, find_model, plain_words

from insula import _native

ROOT = Path(__file__).resolve().parents[2]
UP, DOWN = (Metric(name="m", unit="u", higher_is_better=h) for h in (True, False))
MODEL = Model(
    label="toy",
    path=Path("toy.gguf"),
    sha256="ab" * 32,
    context=2048,
    words={300: " word"},
    file_bytes=1_100_000,
    streamed=1_000_000,
    block_weights=900_000,
    head_weights=100_000,
    kv_bytes=1000,
)
LIMITS = Limits(bandwidth=1e9, int8=1e11)
FACTS = {
    "run": "20260102-030405",
    "threads": 2,
    "rounds_asked": 3,
    "load_before": 0.1,
    "machine": {"cpu": "A CPU", "cores": 2, "system": "Linux", "python": "3.11"},
}


def taken(*values: float, isa: str = "avx2", **cannot: str) -> Taken:
    return Taken(
        values={n: {"speed": v} for n, v in enumerate(values)},
        cannot={"" if k == "whole" else k: v for k, v in cannot.items()},
        facts={"version": "1.0", "isa": isa} if values else {},
    )


@pytest.fixture
def measured() -> list[dict]:
    scenarios = [s for s in SCENARIOS if s.name in ("prefill-512", "decode-128", "streams-16")]
    engines = ["insula", "insula avx2", "peer", "poor"]
    found = {}
    for s in scenarios:
        found["insula", s.name] = taken(30, 10, 20, isa="avx512")
        found["insula avx2", s.name] = taken(12, 12, 12)
        found["peer", s.name] = taken(5, 10, 10)
        found["poor", s.name] = taken(whole="one <conversation> | at a time")
    return rows(found, scenarios, engines, MODEL, LIMITS, FACTS)


def test_scenarios_by_name_and_kind():
    assert choose([]) == list(SCENARIOS)
    assert [s.name for s in choose(["chat", "prefill"])] == [
        *("prefill-128", "prefill-512", "prefill-4096", "chat"),
    ]
    with pytest.raises(ValueError, match=r"'prefil'; allowed: prefill-128, .* or prefill, decode"):
        choose(["prefil"])
    names = [s.name for s in SCENARIOS]
    assert len(set(names)) == len(names)
    assert {s.like for s in SCENARIOS} <= {"", *names}
    assert {s.kind for s in QUICK} == {s.kind for s in SCENARIOS}


def test_the_issue_s_sizes_are_all_there():
    def sizes(kind: str) -> list[int]:
        return [s.streams if kind == "streams" else s.prompt for s in choose([kind])]

    assert sizes("prefill") == [128, 512, 4096]
    assert sizes("decode") == [128, 4096, 16384]
    assert sizes("streams") == [1, 2, 4, 8, 16, 32]
    [shared] = choose(["shared"])
    assert (shared.prompt, shared.streams) == (2000, 32)
    assert shared.longest <= 2048  # the default model's context


def test_spread_and_ratio():
    assert spread([3, 1, 2]) == {"median": 2, "low": 1, "high": 3}
    mine, theirs = {0: 10.0, 1: 20.0, 2: 30.0}, {0: 10.0, 1: 10.0, 2: 5.0}
    assert ratio(mine, theirs, UP) == {"median": 2, "low": 1, "high": 6}
    assert ratio(mine, theirs, DOWN) == {"median": 0.5, "low": 1 / 6, "high": 1}
    # A round that only one of them has counts in its median, not in the range.
    assert ratio({0: 4.0, 1: 8.0}, {0: 2.0}, UP) == {"median": 3, "low": 2, "high": 3}
    assert ratio(mine, {3: 1.0}, UP) is None
    assert ratio({}, theirs, UP) is None


@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [
        # 512 tokens times 0.9M weights and one row of 0.1M, twice, at 1e11/s.
        ("prefill-512", 0, 512 / (2 * (512 * 0.9e6 + 0.1e6) / 1e11)),
        # 1 MB of weights and 128 kB of keys and values at 1 GB/s.
        ("decode-128", 0, 1 / 1.128e-3),
        ("streams-16", 0, 16 / (2.024e-3)),
        ("start-up", 0, 1.1e-3),
        ("memory", 0, 1.576),
        ("chat", 1, 100),
        ("shared-prefix", 1, 1e-3),  # 16 tokens: the weights must be read once
    ],
)
def test_limits(name, metric, expected):
    [s] = choose([name])
    assert limit(s, s.metrics[metric], MODEL, LIMITS) == pytest.approx(expected)


def test_many_rows_are_bound_by_arithmetic():
    s = Scenario(name="x", kind="streams", prompt=0, streams=1000)
    slow = Limits(bandwidth=1e12, int8=1e9)
    assert limit(s, s.metrics[0], MODEL, slow) == pytest.approx(1e9 / 2e6)


def test_rows(measured):
    row = measured[0]
    assert (row["engine"], row["scenario"], row["unit"]) == ("insula", "prefill-512", "tokens/s")
    assert (row["low"], row["median"], row["high"], row["rounds"]) == (10, 20, 30, [30, 10, 20])
    assert row["times_better"]["peer"] == {"median": 2, "low": 1, "high": 6}
    assert row["share"] == pytest.approx(20 / row["limit"], abs=1e-4)
    poor = next(r for r in measured if r["engine"] == "poor")
    assert "median" not in poor
    assert json.loads(json.dumps(measured)) == measured


def test_best_peer_is_a_peer_of_the_level(measured):
    row = measured[0]
    assert best_peer(measured, row)["engine"] == "peer"
    assert best_peer(measured, row, "avx512") is None


def test_tables(measured, tmp_path):
    text = tables(measured)
    assert "### toy" in text
    assert "insula avx2 to the best peer at avx2" in text
    line = next(x for x in text.splitlines() if x.startswith("| prefill-512 "))
    assert "**20.0**<br>10.0 to 30.0<br>" in line
    assert "**2.00**<br>1.00 to 6.00<br>peer" in line
    assert line.count("(1)") == 1
    assert "1. one <conversation> | at a time" in text
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BENCH[0]}\nold\n{BENCH[1]}\nafter\n")
    write_tables(measured, page)
    write_tables(measured, page)  # twice is once
    assert page.read_text() == f"before\n{BENCH[0]}\n\n{text}{BENCH[1]}\nafter\n"
    page.write_text("no place")
    with pytest.raises(ValueError, match=r"performance\.md has no"):
        write_tables(measured, page)


@pytest.mark.parametrize("name", ["README.md", "README.es.md"])
def test_readmes_have_their_place(name, measured, tmp_path):
    page = tmp_path / name
    page.write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    write_summary(measured, page)
    block = page.read_text(encoding="utf-8").partition(README[0])[2].partition(README[1])[0]
    assert "| toy | prefill 512 | 20.0 tokens/s | 10.0 (peer) | 2.00 |" in block
    assert block.count("| toy |") == 3


def test_numbers():
    assert [number(x) for x in (12345.6, 123.4, 12.34, 1.234, 0.01234)] == [
        *("12,346", "123", "12.3", "1.23", "0.0123"),
    ]


def test_picture(measured):
    svg = picture(measured, "toy & co")
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    told = [e.text for e in root.iter(f"{space}title")]
    assert "insula: 20 tokens/s (10 to 30)" in told
    texts = [e.text for e in root.iter(f"{space}text")]
    assert "Prefill, tokens/s" in texts
    assert "16 streams" in texts
    assert "poor" not in texts  # an engine without a figure has no bars
    heights = {float(e.get("height")) for e in root.iter(f"{space}rect")}
    assert {150.0, 75.0} <= heights  # bars from zero
    assert "prefers-color-scheme: dark" in svg


def test_streams_count_while_all_decode():
    from scenarios import together

    # Both decode from 2 to 4: three tokens of the first, two of the second.
    assert together([[1, 2.5, 3, 4], [2, 3, 4, 5]]) == pytest.approx(5 / 2)
    with pytest.raises(CannotError):
        together([[0, 1], [2, 3]])


class Toy:
    """An engine that takes a second a token, and remembers every prompt."""

    isa = "none"

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.streams = 99

    def ask(self, prompts, generate, *, reuse):
        if len(prompts) > self.streams:
            raise CannotError("one at a time")
        answers = []
        for prompt in prompts:
            known = max((self._same(prompt, s) for s in self.seen), default=0) if reuse else 0
            first = float(len(prompt) - known)
            ids = [7] * generate
            answers.append(
                Answer(
                    ids=ids,
                    times=[first + i for i in range(generate)],
                    computed=len(prompt) - known,
                )
            )
            self.seen.append(prompt + ids)
        return answers

    @staticmethod
    def _same(a, b):
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))


@pytest.mark.parametrize("s", [s for s in QUICK if s.kind not in ("start", "memory")])
def test_scenarios_on_a_toy(s):
    values = run_scenario(s, Toy(), Words(range(100), 1))
    for metric in s.metrics:
        assert values[metric.name] > 0
    if s.kind in ("prefill", "decode"):
        assert values["speed"] == 1
    if s.kind == "chat":  # a turn computes what was asked in it, and nothing again
        assert [t["computed"] for t in values["turns"]] == [12, 12, 12]
    if s.kind == "shared":
        assert values["first token, prefix known"] < values["first token, prefix new"]


def test_what_an_engine_cannot_do_is_said():
    [s] = choose(["shared"], QUICK)
    toy = Toy()
    toy.streams = 1
    values = run_scenario(s, toy, Words(range(100), 1))
    assert values["cannot"] == {"speed": "one at a time"}
    assert "speed" not in values


def test_random_words_are_the_same_for_everybody():
    assert Words([1, 2, 3], 5)(20) == Words([1, 2, 3], 5)(20) != Words([1, 2, 3], 6)(20)


def test_plain_words():
    tokens = [*(f"Ġ{chr(97 + i % 26)}{'b' * (i // 26 + 1)}" for i in range(1000)), "Ġx", "<s>", "a"]
    words = plain_words({"tokenizer.ggml.tokens": tokens})
    assert len(words) == 1000
    assert words[0] == " ab"
    few = {"tokenizer.ggml.tokens": ["<s>", "a"], "tokenizer.ggml.token_type": [3, 1]}
    assert plain_words(few) == {1: "a"}


def test_what_a_model_must_read(tiny_model):
    model = find_model(str(tiny_model), print)
    assert model.streamed == sum(
        4 * n for n in (2 * (2 * 64 + 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96), 320 * 64, 64)
    )
    assert (model.head_weights, model.kv_bytes) == (320 * 64, 2 * 2 * (16 + 16) * 2)
    assert model.context == 512


def test_no_path_of_this_machine_is_told():
    told = run.reason("Traceback\n  x\nOSError: /a/b/d.so: no 'C:\\x\\y.dll' | end\n")
    assert "/a/b" not in told
    assert "|" not in told
    assert told.startswith("OSError: d.so: no")
    said = "load: error loading model: no such vocabulary\nTraceback\nRuntimeError: not loaded"
    assert run.reason(said) == "no such vocabulary"


def test_wrong_arguments_are_named(capsys):
    for given, named in (
        (["--engines", "vim"], "'vim'; allowed: insula"),
        (["--scenarios", "nap"], "'nap'; allowed: prefill-128"),
        (["--rounds", "0"], "1 or more"),
    ):
        with pytest.raises(SystemExit):
            run.parse_arguments(given)
        assert named in capsys.readouterr().err
    quick = run.parse_arguments(["--quick"])
    assert (quick.rounds, quick.dry_run, quick.models) == (1, True, ["default"])


def test_a_run_takes_longer_with_more(tiny_model):
    model = find_model(str(tiny_model), print)
    entrants = [run.Entrant(label="insula", engine="insula")]
    one = run.estimate(QUICK, model, entrants, 1)
    assert 0 < one < run.estimate(QUICK, model, entrants * 2, 1)
    assert one < run.estimate(QUICK, model, entrants, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="smaps_rollup is Linux's")
def test_pss_of_a_process():
    with subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(b'x') * 50_000_000; print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 50_000_000 < pss(child.pid) < 100_000_000
        child.communicate(b"\n")
    assert pss(2**22 + 1) == 0


def test_a_quick_run_of_insula(tiny_model):
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "bench" / "run.py", "--quick", "--engines", "insula"),
            *("--models", tiny_model, "--threads", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 models, 8 scenarios, 1 engines, 1 rounds" in done.stderr
    for s in QUICK:
        assert f"| {s.name}" in done.stdout
    assert "(1)" not in done.stdout  # it can do everything


@pytest.mark.parametrize("level", _native.isa_levels())
def test_every_level_says_what_it_could_do(level):
    assert _native.measure_int8(1, level) > 0.1  # billions a second


def test_the_limits_refuse_nonsense():
    with pytest.raises(ValueError, match="available here: "):
        _native.measure_int8(1, "abacus")
    with pytest.raises(ValueError, match=r"1\.\.1024"):
        _native.measure_int8(0)
