"""The table of architectures in docs/models.md says what the tests check, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden import golden, support_table
from golden.support_table import CLAIMS, REAL
from insula.models.registry import ARCHITECTURES

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    page = support_table.PAGE.read_text(encoding="utf-8")
    assert support_table.BEGIN in page
    assert support_table.END in page
    assert support_table.written(page, tmp_path) == page, support_table.__doc__


def test_the_page_describes_each_once() -> None:
    page = support_table.PAGE.read_text(encoding="utf-8").partition(support_table.BEGIN)[0]
    described = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    described = [name for name in described if name in ARCHITECTURES]
    assert sorted(described) == sorted(ARCHITECTURES)


def test_every_architecture_has_a_golden(tmp_path: Path) -> None:
    found = support_table.by_architecture(tmp_path)
    assert set(found) == set(ARCHITECTURES)
    assert [arch for arch, names in found.items() if not names] == []
    for name in golden.NAMES:
        assert {"made_by", "torch", "transformers", "seed", "config"} <= set(
            golden.load(name).provenance
        )


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_each_figure_is_one_that_a_test_checks(claim: support_table.Claim) -> None:
    off = support_table.kept()[claim.name]
    assert set(off) == set(claim.goldens)
    assert max(off.values()) <= claim.limit
    assert all(value >= 0 for value in off.values())


def test_published_weights_have_their_test() -> None:
    assert set(REAL) <= set(ARCHITECTURES)
    for _, path in REAL.values():
        assert (ROOT / path).is_file()
