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
        forward = jax.jit(block)
        hidden = [forward(own, x) for x in hidden]
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
    straight = whole(tmp_path / "straight")
    assert len(straight) == 3
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
    resumed = whole(tmp_path / "killed", resume=True)  # blocks 0 and 1 were finished
    assert [block.errors for block in resumed] == [block.errors for block in straight]
    hidden = [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]
    assert not hidden, hidden
    first, second = (Folder(tmp_path / name).load() for name in ("straight", "killed"))
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"no kernel of .* matches \['model.norm.\*'\]; a glob narrows"):
        _ = models.prune_folder(llama, tmp_path / "new", TOKENS, sparsities, where=["*", "model.norm.*"])
    where = ["model.layers.[01].*proj.weight"]
    _ = models.prune_folder(llama, tmp_path / "new", TOKENS, sparsities, where=where, options={"method": "magnitude"})
    found = Folder(tmp_path / "new").load()
    zeros = {name: float((x == 0).mean()) for name, x in found.items() if "proj" in name}
    for name, fraction in zeros.items():
        want = 0.75 if ".layers.0." in name else 0.25 if ".layers.1.mlp." in name else 0.0
        assert fraction == pytest.approx(want, abs=0.01), name


def test_perplexity_is_that_of_the_whole_function(llama: Path):
    found = models.perplexity(llama, TOKENS, batch=4)
    logits = jax.jit(models.decoder(_CASES["llama"]["config"]))(drawn("llama"), jnp.asarray(TOKENS[:, :-1]))
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(TOKENS)[:, 1:, None], -1)
    assert found.value == pytest.approx(float(jnp.exp(losses.mean())), rel=1e-4)
    assert found.low < found.value < found.high
    assert found.tokens == 6 * 15


def test_hidden_states_may_be_kept_in_bfloat16_and_on_disk(llama: Path, tmp_path: Path):
    options: dict[str, Any] = {"options": {"method": "wanda"}, "hidden_dtype": jnp.bfloat16}
    first = models.prune_folder(llama, tmp_path / "memory", TOKENS, 0.5, **options)
    second = models.prune_folder(llama, tmp_path / "disk", TOKENS, 0.5, hidden_on_disk=True, **options)
    assert [result.errors for result in first] == [result.errors for result in second]
    one, other = (Folder(tmp_path / name).load() for name in ("memory", "disk"))
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name], err_msg=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "memory"]
    with pytest.raises(ValueError, match="hidden_dtype must be one of float32, bfloat16, float16"):
        _ = models.prune_folder(llama, tmp_path / "new", TOKENS, 0.5, hidden_dtype=jnp.int8)


@pytest.mark.slow
def test_an_expert_that_no_token_reaches_is_named(tmp_path: Path):
    params = drawn("mixtral")
    gate = "model.layers.1.block_sparse_moe.gate.weight"
    source = tmp_path / "source"
    source.mkdir()
    _ = (source / "config.json").write_text(json.dumps(_CASES["mixtral"]["config"]))
    # Rows 0 and 1 win for every token: their logits are the larger of a number and its negative, the others' are zero.
    rows = jnp.stack([params[gate][0], -params[gate][0], jnp.zeros(32), jnp.zeros(32)])
    save_file({**params, gate: rows}, source / "model.safetensors")
    run = lambda method, output: models.prune_folder(source, tmp_path / output, TOKENS, 0.5, options={"method": method})
    # Of the two experts per token one is 0 or 1, the other is 2, the lower of the two zeros: 3 sees nothing.
    with pytest.raises(
        ValueError, match=r"inputs of model.layers.1.block_sparse_moe.experts.3.w1.weight and of 2 more"
    ):
        _ = run("sparsegpt", "new")
    assert not (tmp_path / "new").exists()
    assert len(run("magnitude", "magnitude")) == 3


def test_experts_are_calibrated_on_their_own_tokens():
    config, params = _CASES["mixtral"]["config"], drawn("mixtral")
    cut = models.parts(config)
    own, x = models.block_params(params, 0), cut.embed(params, jnp.asarray(TOKENS))
    stats = calibrate(lambda p, x: cut.block(p, x, 0), own, [x], collect="square")
    square = lambda name: stats[f"block_sparse_moe.{name}.weight"].square[0]
    seen = sum(square(f"experts.{expert}.w1") for expert in range(4))
    np.testing.assert_allclose(seen, 2 * square("gate"), rtol=1e-4)  # each token is read by two experts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"missing": "model.layers.1.mlp.up_proj.weight"},
            r"has no parameter model.layers.1.mlp.up_proj.weight",
        ),
        ({"missing": "model.norm.weight"}, r"has no parameter model.norm.weight, which its config.json requires"),
        ({"shape": "model.layers.2.mlp.down_proj.weight"}, r"the parameters model.layers.2.\* do not fit config.json"),
        ({"key": "num_attention_heads"}, r"config.json has no num_attention_heads, which a model of the family llama"),
    ],
)
def test_a_folder_that_is_not_complete_is_refused_from_its_shapes(tmp_path: Path, change: dict, message: str):
    params = {name: x for name, x in drawn("llama").items() if name != change.get("missing")}
    if "shape" in change:
        params[change["shape"]] = params[change["shape"]][:, 1:]
    config = {key: value for key, value in _CASES["llama"]["config"].items() if key != change.get("key")}
    source = tmp_path / "source"
    source.mkdir()
    _ = (source / "config.json").write_text(json.dumps(config))
    save_file(params, source / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        _ = models.prune_folder(source, tmp_path / "new", TOKENS, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_glob_without_a_parameter_is_refused_before_anything_is_written(llama: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"sparsity: no parameter matches 'layers\.0\.\*'; the names are:\n  lm_head"):
        _ = models.prune_folder(llama, tmp_path / "new", TOKENS, {"model.layers.1.*": 0.5, "layers.0.*": 0.5})
    assert not list(tmp_path.iterdir())


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
