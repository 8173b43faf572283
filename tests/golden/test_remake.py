"""Where torch is present the goldens are made again and must come out the same."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from golden import golden, make_goldens

torch_is_here = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


@pytest.mark.slow
@pytest.mark.skipif(not torch_is_here, reason="needs torch and transformers (extra: train)")
@pytest.mark.parametrize("name", list(make_goldens.CASES))
def test_made_again_it_is_the_same(name):
    kept, made = golden.load(name), make_goldens.make(name)
    np.testing.assert_array_equal(made["ids"], kept.ids)
    np.testing.assert_allclose(made["logits"], kept.logits, rtol=0, atol=1e-4)
    assert made["gguf"].tobytes() == kept.gguf


def test_each_golden_has_its_recipe():
    assert sorted(make_goldens.CASES) == golden.NAMES
