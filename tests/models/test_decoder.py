"""The decoder against transformers (tests/reference/hf_decoders.py ran it), family by family."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from tests.cases import few

_REFERENCE = Path(__file__).parents[1] / "reference"
_CASES: dict[str, Any] = json.loads((_REFERENCE / "hf_decoders.json").read_text())


def _script() -> Any:
    spec: Any = importlib.util.spec_from_file_location("hf_decoders", _REFERENCE / "hf_decoders.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()


def drawn(case: str) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in script.parameters(_CASES[case]["shapes"]).items()}


def test_the_file_holds_every_case_and_every_family():
    assert list(_CASES) == list(script.CASES)
    assert {entry["config"]["model_type"] for entry in _CASES.values()} == set(models.FAMILIES)


@pytest.mark.parametrize("case", few(_CASES, "llama 3", "qwen2", "gemma3", "phi3, longrope", "mixtral", "qwen2_moe"))
def test_logits_are_those_of_transformers(case):
    fn = models.decoder(_CASES[case]["config"])
    logits = np.asarray(jax.jit(fn)(drawn(case), jnp.asarray(script.TOKENS)))
    assert logits.shape == (2, 20, 61)
    np.testing.assert_allclose(logits[script.SHOWN], np.array(_CASES[case]["logits"]), atol=1e-4)


def test_the_parts_in_turn_are_the_whole():
    config, params = _CASES["gemma2"]["config"], drawn("gemma2")
    cut = models.parts(config)
    assert cut.blocks == 3
    block = jax.jit(cut.block, static_argnums=2)
    hidden = cut.embed(params, jnp.asarray(script.TOKENS))
    for index in range(cut.blocks):
        hidden = block(models.block_params(params, index), hidden, index)
    whole = jax.jit(models.decoder(config))(params, jnp.asarray(script.TOKENS))
    np.testing.assert_allclose(cut.head(params, hidden), whole, atol=1e-5)


def test_a_token_sees_only_what_came_before_it():
    config, params = _CASES["qwen3_moe"]["config"], drawn("qwen3_moe")
    fn = jax.jit(models.decoder(config))
    tokens = jnp.asarray(script.TOKENS)
    other = tokens.at[:, 12:].set((tokens[:, 12:] + 5) % 61)
    first, second = fn(params, tokens), fn(params, other)
    np.testing.assert_allclose(first[:, :12], second[:, :12], atol=1e-5)
    assert float(jnp.abs(first[:, 12:] - second[:, 12:]).max()) > 0.1


def test_widths_are_read_from_the_arrays():
    # A key-value head with its queries, half of one MLP and an expert of another layer are gone.
    config, params = _CASES["mixtral"]["config"], drawn("mixtral")
    fn = jax.jit(models.decoder(config))
    tokens = jnp.asarray(script.TOKENS)
    masked, slim = dict(params), dict(params)
    layer = "model.layers.1.self_attn."
    masked[f"{layer}o_proj.weight"] = masked[f"{layer}o_proj.weight"].at[:, 16:].set(0)
    slim[f"{layer}o_proj.weight"] = slim[f"{layer}o_proj.weight"][:, :16]
    slim[f"{layer}q_proj.weight"] = slim[f"{layer}q_proj.weight"][:16]
    for name in ("k_proj", "v_proj"):
        slim[f"{layer}{name}.weight"] = slim[f"{layer}{name}.weight"][:8]
    mlp = "model.layers.0.block_sparse_moe.experts.2."
    masked[f"{mlp}w2.weight"] = masked[f"{mlp}w2.weight"].at[:, 24:].set(0)
    slim[f"{mlp}w2.weight"] = slim[f"{mlp}w2.weight"][:, :24]
    for name in ("w1", "w3"):
        slim[f"{mlp}{name}.weight"] = slim[f"{mlp}{name}.weight"][:24]
    np.testing.assert_allclose(fn(slim, tokens), fn(masked, tokens), atol=1e-4)


def test_an_expert_that_is_gone_is_never_chosen():
    config, params = _CASES["olmoe"]["config"], drawn("olmoe")
    tokens, prefix = jnp.asarray(script.TOKENS), "model.layers.2.mlp."
    slim = {name: x for name, x in params.items() if not name.startswith(f"{prefix}experts.1.")}
    gate = params[f"{prefix}gate.weight"]
    slim[f"{prefix}gate.weight"] = jnp.delete(gate, 1, axis=0, assume_unique_indices=True)
    fn = jax.jit(models.decoder(config))
    found = fn(slim, tokens)
    assert bool(jnp.isfinite(found).all())
    assert float(jnp.abs(found - fn(params, tokens)).max()) > 1e-3


def test_bfloat16_stays_bfloat16():
    config = _CASES["llama"]["config"]
    params = {name: x.astype(jnp.bfloat16) for name, x in drawn("llama").items()}
    logits = jax.jit(models.decoder(config))(params, jnp.asarray(script.TOKENS))
    assert logits.dtype == jnp.bfloat16
    want = np.array(_CASES["llama"]["logits"])
    assert np.abs(np.asarray(logits, np.float32)[script.SHOWN] - want).mean() < 0.05 * np.abs(want).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, r"model_type 'bert'; decoder knows llama, .* pass a function of your own"),
        ({"hidden_act": "mish"}, r"hidden_act 'mish'; decoder knows silu"),
        ({"rope_scaling": {"rope_type": "su"}}, r"rope_scaling of type 'su'; decoder knows default"),
    ],
)
def test_what_is_not_known_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        _ = models.decoder({**_CASES["llama"]["config"], **change})


def test_a_block_without_parameters_is_an_error():
    config = {**_CASES["llama"]["config"], "num_hidden_layers": 4}
    with pytest.raises(ValueError, match="params has no block 3; it has blocks 0 to 2, and num_hidden_layers"):
        _ = models.decoder(config)(drawn("llama"), jnp.asarray(script.TOKENS))
