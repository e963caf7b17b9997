"""transformers reads the folders that are written, and computes the same logits. Skipped where it is not installed."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from jaxprune.checkpoints import Folder

from .test_decoder import _CASES
from .test_pruning import TOKENS, write

_DENSE = [case for case, entry in _CASES.items() if "num_experts_per_tok" not in entry["config"]]


def check_logits(folder: Path) -> None:
    torch: Any = pytest.importorskip("torch", reason="needs torch and transformers")
    transformers: Any = pytest.importorskip("transformers", reason="needs torch and transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        with torch.no_grad():
            want = made.eval()(torch.tensor(TOKENS)).logits.numpy()
    found = Folder(folder)
    got = jax.jit(models.decoder(found.config))(found.load(), jnp.asarray(TOKENS))
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("case", _CASES)
def test_a_pruned_folder(case: str, tmp_path: Path):
    _ = models.prune_folder(write(tmp_path / "source", case), tmp_path / "new", TOKENS, 0.5)
    check_logits(tmp_path / "new")


@pytest.mark.parametrize("case", _DENSE)
def test_a_slim_folder(case: str, tmp_path: Path):
    source = write(tmp_path / "source", case)
    kv_heads = None if case == "phi3, longrope" else 1  # refused: see test_slimming
    _ = models.slim_folder(source, tmp_path / "new", TOKENS, mlp=0.75, kv_heads=kv_heads, drop_blocks=1)
    check_logits(tmp_path / "new")
