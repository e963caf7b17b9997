"""Narrower and shallower language models from a folder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from jaxprune.checkpoints import Folder
from tests.cases import few

from .test_decoder import _CASES, drawn
from .test_pruning import TOKENS, write


@pytest.mark.parametrize("case", few(("qwen3", "phi3", "llama, biases", "gemma2"), "qwen3"))
def test_the_narrow_model_is_the_wide_one_without_what_the_units_write(case: str, tmp_path: Path):
    source = write(tmp_path / "wide", case)
    removal = models.slim_folder(source, tmp_path / "narrow", TOKENS, mlp=0.75, kv_heads=1)
    config, narrow, wide = removal.config, Folder(tmp_path / "narrow"), drawn(case)
    assert (config["intermediate_size"], config["num_key_value_heads"]) == (36, 1)
    assert config["num_attention_heads"] == 2
    assert narrow.config == config
    small = narrow.load()
    # What stays of the columns of the output projections tells which units stay.
    masked = dict(wide)
    for name, x in small.items():
        if name.endswith(("down_proj.weight", "o_proj.weight")):
            kept = [int(np.flatnonzero((c == np.asarray(wide[name]).T).all(1))[0]) for c in np.asarray(x).T]
            assert kept == sorted(kept)
            assert len(kept) == x.shape[1] < wide[name].shape[1]
            masked[name] = jnp.zeros_like(wide[name]).at[:, np.array(kept)].set(wide[name][:, np.array(kept)])
    tokens = jnp.asarray(TOKENS)
    want = jax.jit(models.decoder(_CASES[case]["config"]))(masked, tokens)
    np.testing.assert_allclose(jax.jit(models.decoder(config))(small, tokens), want, atol=2e-4)


def test_the_neurons_that_write_most_stay(tmp_path: Path):
    source = write(tmp_path / "wide", "llama")
    _ = models.slim_folder(source, tmp_path / "narrow", TOKENS, mlp=0.5)
    params, cut = drawn("llama"), models.parts(_CASES["llama"]["config"])
    hidden = cut.embed(params, jnp.asarray(TOKENS))
    own = models.block_params(params, 0)
    # The neuron's activation from the weights, by hand, at the first block.
    norm = lambda x, w: w * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    block = jax.jit(cut.block, static_argnums=2)
    attended = np.asarray(block({**own, "mlp.down_proj.weight": jnp.zeros((32, 48))}, hidden, 0), np.float64)
    x = norm(attended, np.asarray(own["post_attention_layernorm.weight"], np.float64))
    gate, up = (x @ np.asarray(own[f"mlp.{name}_proj.weight"], np.float64).T for name in ("gate", "up"))
    energy = ((gate / (1 + np.exp(-gate)) * up) ** 2).sum((0, 1)) * (np.asarray(own["mlp.down_proj.weight"]) ** 2).sum(
        0
    )
    kept = np.sort(np.argsort(-energy)[:24])
    small = Folder(tmp_path / "narrow").load()
    np.testing.assert_array_equal(
        small["model.layers.0.mlp.up_proj.weight"], params["model.layers.0.mlp.up_proj.weight"][kept]
    )


def test_blocks_of_least_influence_go(tmp_path: Path):
    source = write(tmp_path / "deep", "gemma3")
    removal = models.slim_folder(source, tmp_path / "shallow", TOKENS, drop_blocks=1)
    (gone,) = removal.blocks
    assert gone == int(np.argmin(removal.influence))
    stay = [index for index in range(3) if index != gone]
    small, wide = Folder(tmp_path / "shallow").load(), drawn("gemma3")
    for place, index in enumerate(stay):
        for name, x in models.block_params(wide, index).items():
            np.testing.assert_array_equal(small[f"model.layers.{place}.{name}"], x)
    # Which blocks see a window stays with them.
    cut, new = models.parts(_CASES["gemma3"]["config"]), models.parts(removal.config)
    assert [new.is_local(place) for place in range(2)] == [cut.is_local(index) for index in stay]
    hidden, block = cut.embed(wide, jnp.asarray(TOKENS)), jax.jit(cut.block, static_argnums=2)
    for index in stay:
        hidden = block(models.block_params(wide, index), hidden, index)
    got = jax.jit(models.decoder(removal.config))(small, jnp.asarray(TOKENS))
    np.testing.assert_allclose(got, jax.jit(cut.head)(wide, hidden), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe"])
def test_experts_that_write_little_go_and_the_others_are_narrowed(case: str, tmp_path: Path):
    source = write(tmp_path / "wide", case)
    config = models.slim_folder(source, tmp_path / "narrow", TOKENS, experts=0.5, mlp=0.5).config
    assert config.get("num_experts", config.get("num_local_experts")) == 2
    small, wide = Folder(tmp_path / "narrow").load(), drawn(case)
    gates = {name: x for name, x in small.items() if name.endswith(("moe.gate.weight", "mlp.gate.weight"))}
    assert len(gates) == (3 if case == "mixtral" else 2)  # one layer of qwen2_moe has a dense MLP
    # The same by hand: the decoder takes experts of any number, and the rows of the router tell which ones stay.
    masked = dict(wide)
    for name, gate in gates.items():
        kept = [int(np.flatnonzero((row == np.asarray(wide[name])).all(1))[0]) for row in np.asarray(gate)]
        assert kept == sorted(kept)
        masked[name] = gate
        prefix = name.removesuffix("gate.weight") + "experts."
        for expert in set(range(4)) - set(kept):
            masked = {n: x for n, x in masked.items() if not n.startswith(f"{prefix}{expert}.")}
        for place, expert in enumerate(kept):
            down = "w2" if case == "mixtral" else "down_proj"
            narrow, whole = (x[f"{prefix}{i}.{down}.weight"] for x, i in ((small, place), (wide, expert)))
            columns = [int(np.flatnonzero((c == np.asarray(whole).T).all(1))[0]) for c in np.asarray(narrow).T]
            assert len(columns) == whole.shape[1] // 2
            zeroed = jnp.zeros_like(whole).at[:, np.array(columns)].set(narrow)
            masked[f"{prefix}{expert}.{down}.weight"] = zeroed
    for name, x in small.items():  # dense and shared MLPs
        if name.endswith("down_proj.weight") and ".experts." not in name:
            columns = [int(np.flatnonzero((c == np.asarray(wide[name]).T).all(1))[0]) for c in np.asarray(x).T]
            masked[name] = jnp.zeros_like(wide[name]).at[:, np.array(columns)].set(x)
    tokens = jnp.asarray(TOKENS)
    fn = jax.jit(models.decoder(config))
    np.testing.assert_allclose(fn(small, tokens), fn(masked, tokens), atol=2e-4)


def test_the_same_channels_go_everywhere(tmp_path: Path):
    source = write(tmp_path / "wide", "qwen3")
    config = models.slim_folder(source, tmp_path / "narrow", TOKENS, width=0.5).config
    assert (config["hidden_size"], config["num_attention_heads"], config["head_dim"]) == (16, 4, 16)
    small, params = Folder(tmp_path / "narrow").load(), drawn("qwen3")
    # The channels by hand: the energy after both norms of every block of the dense model.
    cut, energy = models.parts(_CASES["qwen3"]["config"]), np.zeros(32)
    hidden, block = cut.embed(params, jnp.asarray(TOKENS)), jax.jit(cut.block, static_argnums=2)
    norm = lambda x, w: np.asarray(w, np.float64) * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    for index in range(cut.blocks):
        own = models.block_params(params, index)
        attended = block({**own, "mlp.down_proj.weight": jnp.zeros((32, 48))}, hidden, cut.alike(index))
        for x, name in ((hidden, "input_layernorm.weight"), (attended, "post_attention_layernorm.weight")):
            energy += (norm(np.asarray(x, np.float64), own[name]) ** 2).sum((0, 1))
        hidden = block(own, hidden, cut.alike(index))
    kept = np.sort(np.argsort(-energy)[:16])
    for name, x in params.items():
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        want = x if "_norm" in name else x[kept] if writes else x[..., kept]
        np.testing.assert_array_equal(small[name], want, err_msg=name)
    assert jax.eval_shape(models.decoder(config), small, jnp.asarray(TOKENS)).shape == (6, 16, 61)


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("llama", {"mlp": 0.0}, r"mlp is the fraction to keep and must be in \(0, 1\], got 0.0"),
        ("llama", {"kv_heads": 3}, r"kv_heads must be from 1 to 2"),
        ("llama", {"drop_blocks": 3}, r"must leave one of the blocks 0 to 2, got 3"),
        ("llama", {"drop_blocks": [7]}, r"must leave one of the blocks 0 to 2, got \[7\]"),
        ("llama", {"width": 1.5}, r"width is the fraction to keep"),
        ("llama", {"experts": 0.5}, r"has no routed experts; leave experts out"),
        ("olmoe", {"width": 0.5}, r"an OLMoE, whose heads and channels cannot be removed"),
        ("phi3, longrope", {"kv_heads": 1}, r"a Phi-3 with rope_scaling, whose heads and channels cannot be removed"),
    ],
)
def test_what_cannot_be_removed_is_said(tmp_path: Path, case: str, options: dict, message: str):
    source = write(tmp_path / "source", case)
    with pytest.raises(ValueError, match=message):
        _ = models.slim_folder(source, tmp_path / "new", TOKENS, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_output_that_exists_fails_before_the_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "wide", "llama")
    (tmp_path / "narrow").mkdir()
    monkeypatch.setattr("jaxprune.models.slimming._scores", None)
    with pytest.raises(FileExistsError, match="narrow exists and is not overwritten"):
        _ = models.slim_folder(source, tmp_path / "narrow", TOKENS, mlp=0.5)
