"""A checkpoint folder where the transformers backend is not installed: what to do, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula import LLM
from insula.engine.backends import base
from insula.errors import UnsupportedError


def test_it_names_the_extra_and_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    present = base._present
    monkeypatch.setattr(base, "_present", lambda module: module != "torch" and present(module))
    with pytest.raises(UnsupportedError, match=r"insula\[train\].*insula convert") as info:
        LLM(tmp_path)
    assert info.value.backend == "transformers"
