"""Writes the table of architectures in docs/models.md from what the tests check.

    PYTHONPATH=tests python -m golden.support_table [RECORD]

The registry says which architectures there are, the converter's and the exporter's registries what
goes in and out, the goldens' files who made them, support.json how far off each comparison was.
RECORD is the file of a test run with INSULA_RECORD (`record`); its lines replace those kept:

    INSULA_RECORD=build/record.jsonl python -m pytest tests/models/test_goldens.py \
        tests/models/test_export.py tests/oracle/test_llamacpp_goldens.py \
        tests/backends/test_goldens_elsewhere.py -m "slow or not slow"
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from backends.test_goldens_elsewhere import GENERATING
from golden import golden
from insula.formats.gguf import GGUFFile
from insula.models.convert_rules import RULES
from insula.models.export_ways import WAYS
from insula.models.registry import ARCHITECTURES
from models.test_export import FOLDERS
from models.test_packed4_architectures import PACKED, REFUSED
from oracle.test_llamacpp_goldens import COMPARED, ENCODERS, ONLY_OURS

PAGE = Path(__file__).parents[2] / "docs/models.md"
KEPT = Path(__file__).with_name("support.json")
BEGIN = "<!-- made by tests/golden/support_table.py -->"
END = "<!-- end -->"

#: What was run with published weights, and the test that does it wherever they are.
REAL = {
    "llama": ("SmolLM2 135M, Q4_1", "tests/backends/test_llm_on_llamacpp.py"),
    "bert": ("all-MiniLM-L6-v2", "tests/oracle/test_minilm.py"),
}

COLUMNS = (
    *("name", "goldens", "of transformers", "native, off by", "folders in"),
    *("folders out, off by", "GPTQ, AWQ in", "llama.cpp", "on Insula's backends"),
    "published weights",
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One comparison: how far off it may be, and of which goldens a test makes it."""

    name: str
    limit: float
    goldens: frozenset[str]


CLAIMS = (
    Claim(name="native", limit=1e-3, goldens=frozenset(golden.NAMES)),
    Claim(name="folder", limit=2e-5, goldens=frozenset(FOLDERS)),
    Claim(name="llamacpp", limit=5e-4, goldens=frozenset(COMPARED)),
    Claim(name="on transformers", limit=1e-3, goldens=frozenset(GENERATING)),
    Claim(name="on llamacpp", limit=0.05, goldens=frozenset(COMPARED)),
)


def kept() -> dict[str, dict[str, float]]:
    """How far off each golden was, by comparison."""
    found: dict[str, dict[str, float]] = json.loads(KEPT.read_text(encoding="utf-8"))
    return found


def by_architecture(folder: Path) -> dict[str, list[str]]:
    """The goldens of each architecture, by what their files say."""
    found: dict[str, list[str]] = {name: [] for name in ARCHITECTURES}
    for name in golden.NAMES:
        path = golden.load(name).write(folder)
        with GGUFFile.open(path) as file:
            found[file.metadata["general.architecture"]].append(name)
        path.unlink()
    return found


def _power(values: list[float]) -> str:
    """The power of ten that none exceeds."""
    top = max(values)
    return "0" if top == 0 else f"1e{math.ceil(math.log10(top) - 1e-9)}"


def _versions(names: list[str]) -> str:
    found = {golden.load(name).provenance["transformers"] for name in names}
    return ", ".join(sorted(found))


def _packed(names: list[str]) -> str:
    return "refused" if set(names) & REFUSED else "same values" if set(names) <= set(PACKED) else ""


def _llamacpp(names: list[str], off: dict[str, float]) -> str:
    same = [off[name] for name in names if name in off]
    apart = [name for name in names if name in ONLY_OURS]
    parts = [f"KL {_power(same)}"] if same else []
    if apart:
        parts.append(f"not {', '.join(apart)}")
    if not same and not apart and set(names) <= set(ENCODERS):
        parts.append("no logits to compare")
    return "; ".join(parts)


def _backends(names: list[str], off: dict[str, dict[str, float]]) -> str:
    """The backends beside the native one on which tests run all or some of these."""
    parts = []
    for backend in ("transformers", "llamacpp"):
        there = [name for name in names if name in off[f"on {backend}"]]
        rest = len(names) - len(there)
        if there:
            some = f" ({len(there)} of {len(names)})" if rest else ""
            parts.append(f"{backend}: {_power([off[f'on {backend}'][n] for n in there])}{some}")
    return ", ".join(parts) or "none"


def rows(folder: Path) -> list[str]:
    """The block between the markers."""
    off = kept()
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for arch, names in by_architecture(folder).items():
        ways = {way.name for way in WAYS.values() if way.rules.arch == arch}
        out = [off["folder"][name] for name in names if name in off["folder"]]
        cells = [
            f"`{arch}`",
            ", ".join(names),
            _versions(names),
            _power([off["native"][name] for name in names]),
            ", ".join(sorted(n for n, rules in RULES.items() if rules.arch == arch)),
            f"{', '.join(sorted(ways))}: {_power(out)}" if ways and out else "refused",
            _packed(names),
            _llamacpp(names, off["llamacpp"]),
            _backends(names, off),
            REAL[arch][0] if arch in REAL else "never",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines.append("Not compared with llama.cpp, and why:")
    lines.append("")
    lines += [f"- {name}: {reason}" for name, reason in sorted(ONLY_OURS.items())]
    return lines


def written(page: str, folder: Path) -> str:
    """The page with a fresh block."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + "\n".join([BEGIN, *rows(folder), END]) + after


def main(argv: list[str]) -> None:
    if argv:
        found = kept() if KEPT.exists() else {}
        for line in Path(argv[0]).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found.setdefault(entry["claim"], {})[entry["golden"]] = entry["off"]
        ordered = {claim: dict(sorted(found[claim].items())) for claim in sorted(found)}
        KEPT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        page = written(PAGE.read_text(encoding="utf-8"), Path(folder))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
