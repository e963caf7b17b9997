"""Pruning a language model from a folder, block by block."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file

from jaxprune import calibrate, masks, models, reconstruct
from jaxprune.checkpoints import Folder
from jaxprune.models import pruning

from .test_decoder import _CASES, drawn

TOKENS = np.random.default_rng(3).integers(3, 61, (6, 16))


def write(folder: Path, case: str, dtype: Any = jnp.float32) -> Path:
    folder.mkdir()
    _ = (folder / "config.json").write_text(json.dumps(_CASES[case]["config"]))
    save_file({name: x.astype(dtype) for name, x in drawn(case).items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "llama", "llama")


def test_each_block_is_calibrated_on_the_blocks_pruned_before_it(llama: Path, tmp_path: Path):
    options = {"method": "sparsegpt", "pattern": masks.NM(2, 4)}
    results = models.prune_folder(llama, tmp_path / "new", TOKENS, options=options)
    found = Folder(tmp_path / "new").load()
    params, config = drawn("llama"), _CASES["llama"]["config"]
    cut = models.parts(config)
    hidden = [cut.embed(params, row) for row in jnp.asarray(TOKENS)[:, None]]
    for index in range(cut.blocks):
        block = lambda p, x, index=index: cut.block(p, x, index)
        own = models.block_params(params, index)
        stats = calibrate(block, own, hidden)
        own = reconstruct(own, stats, **options).params
        hidden = [block(own, x) for x in hidden]
        for name, x in own.items():
            np.testing.assert_allclose(found[f"model.layers.{index}.{name}"], x, atol=1e-5, err_msg=name)
        assert len(results[index].errors) == 7
        assert all(0 < error < 0.5 for error in results[index].errors.values())
        assert results[index].sparsity == pytest.approx(0.5)
    for name, x in found.items():
        if "proj" in name:
            groups = np.asarray(x != 0).reshape(-1, 4)  # [outputs, inputs]: groups of four inputs
            assert (groups.sum(-1) <= 2).all()
        else:
            np.testing.assert_array_equal(x, params[name])


def test_a_killed_run_resumes_to_the_same_bits(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = lambda path, **more: models.prune_folder(llama, path, TOKENS, 0.5, options={"method": "wanda"}, **more)
    assert len(whole(tmp_path / "straight")) == 3
    calls: list[int] = []
    forward = pruning.BlockRunner.forward

    def stop_at_the_second(self: Any, params: Any, hidden: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, params, hidden)

    with monkeypatch.context() as patched:
        patched.setattr(pruning.BlockRunner, "forward", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            _ = whole(tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    with pytest.raises(FileExistsError, match="--resume"):
        _ = whole(tmp_path / "killed")
    assert len(whole(tmp_path / "killed", resume=True)) == 1  # blocks 0 and 1 were finished
    first, second = (Folder(tmp_path / name).load() for name in ("straight", "killed"))
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)


def test_routers_and_the_dtype_stay(tmp_path: Path):
    source = write(tmp_path / "mixtral", "mixtral", jnp.bfloat16)
    _ = models.prune_folder(source, tmp_path / "new", TOKENS, 0.5, options={"method": "magnitude"})
    found, before = Folder(tmp_path / "new").load(), Folder(source).load()
    for name, x in found.items():
        assert x.dtype == jnp.bfloat16
        if "proj" in name or "experts" in name:
            assert float((x == 0).mean()) == pytest.approx(0.5, abs=0.01), name
        else:
            np.testing.assert_array_equal(x, before[name], err_msg=name)


def test_where_and_mappings_are_over_the_names_in_the_checkpoint(llama: Path, tmp_path: Path):
    sparsities = {"model.layers.0.*": 0.75, "*.mlp.*": 0.25}
    _ = models.prune_folder(
        llama, tmp_path / "new", TOKENS, sparsities, where=["*proj.weight"], options={"method": "magnitude"}
    )
    found = Folder(tmp_path / "new").load()
    zeros = {name: float((x == 0).mean()) for name, x in found.items() if "proj" in name}
    for name, fraction in zeros.items():
        want = 0.75 if ".layers.0." in name else 0.25 if ".mlp." in name else 0.0
        assert fraction == pytest.approx(want, abs=0.01), name


def test_perplexity_is_that_of_the_whole_function(llama: Path):
    found = models.perplexity(llama, TOKENS, batch=4)
    logits = models.decoder(_CASES["llama"]["config"])(drawn("llama"), jnp.asarray(TOKENS[:, :-1]))
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(TOKENS)[:, 1:, None], -1)
    assert found.value == pytest.approx(float(jnp.exp(losses.mean())), rel=1e-4)
    assert found.low < found.value < found.high
    assert found.tokens == 6 * 15


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[0], r"integers \[windows, time\], got int64 \(16,\)"),
        (TOKENS.astype(float), "integers"),
        (TOKENS[:, :0], "tokens is empty"),
        (TOKENS + 50, "has a vocabulary of 61; encode the text by the folder's own tokenizer"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_before_anything_is_written(llama: Path, tmp_path: Path, tokens, message):
    with pytest.raises(ValueError, match=message):
        _ = models.prune_folder(llama, tmp_path / "new", tokens, 0.5)
    assert not list(tmp_path.iterdir())


def test_a_text_of_one_window_has_no_interval(llama: Path):
    with pytest.raises(ValueError, match="at least two windows of two tokens"):
        _ = models.perplexity(llama, TOKENS[:1])
