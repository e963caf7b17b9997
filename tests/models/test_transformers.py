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
from tests.cases import few

from .test_decoder import _CASES
from .test_pruning import TOKENS, write


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


@pytest.mark.parametrize("case", few(_CASES, "gemma3"))
def test_a_pruned_folder(case: str, tmp_path: Path):
    _ = models.prune_folder(write(tmp_path / "source", case), tmp_path / "new", TOKENS, 0.5)
    check_logits(tmp_path / "new")


@pytest.mark.parametrize("case", few(_CASES, "llama 3", "gemma2", "phi3", "mixtral"))
def test_a_slim_folder(case: str, tmp_path: Path):
    source = write(tmp_path / "source", case)
    more: dict[str, Any] = {"drop_blocks": 1}
    if case not in ("phi3, longrope", "olmoe"):  # refused: see test_slimming
        more |= {"kv_heads": 1, "width": 0.5}
    if "num_experts_per_tok" in _CASES[case]["config"]:
        more["experts"] = 0.75
    _ = models.slim_folder(source, tmp_path / "new", TOKENS, mlp=0.75, **more)
    check_logits(tmp_path / "new")
