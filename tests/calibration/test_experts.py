"""Each expert gets the sums over the tokens that the router sends to it, whatever the form of the mixture."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import criteria, masks, prune, reconstruct
from jaxprune.calibration import calibrate
from tests import mixtures
from tests.cases import few

P, X = mixtures.params(), mixtures.tokens()


def quiet(fn, params, batches, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="experts with fewer tokens")
        return calibrate(fn, params, batches, **kwargs)


def check(stats, name, p, x, layer=()):
    """The sums are those of a loop over the experts."""
    [experts] = stats.experts
    assert {leaf.split("/")[-1] for leaf, _ in experts.leaves} == {"w1", "w2"}
    found = mixtures.rows_of_experts(name, p, x)
    offset = layer[0] * len(found) if layer else 0
    for expert, (given, gate, hidden) in enumerate(found):
        # In one einsum the product by w2 has the gates in its other operand.
        met = hidden * gate[:, None] if name == "dense in one einsum" else hidden
        for leaf, rows in (("w1", given), ("w2", met)):
            own = stats[leaf]
            np.testing.assert_allclose(own.gram[offset + expert], rows.T @ rows, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(own.total[offset + expert], rows.sum(0), rtol=1e-4, atol=1e-4)
            assert (own.count[offset + expert] == len(rows)).all()
        norm = np.linalg.norm(hidden @ np.asarray(p["w2"][expert], np.float64), axis=1)
        sums = [
            np.asarray(getattr(experts, of))[(*layer, expert)]
            for of in ("tokens", "gate", "norm", "square", "weighted")
        ]
        wanted = [len(given), gate.sum(), norm.sum(), (norm**2).sum(), (gate * norm).sum()]
        np.testing.assert_allclose(sums, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", few(mixtures.FORMS, "dense", "slots by index", "ragged"))
def test_sums_of_each_expert_are_those_of_a_loop(name):
    stats = quiet(mixtures.FORMS[name], P, [X], collect=("gram", "total"))
    check(stats, name, P, X)
    assert not stats.partly
    assert dict(stats.uncovered) == {}


SCANNED = ("ragged", "dense in one einsum", "slots by masks", "matrices of tokens")


@pytest.mark.parametrize("name", few(SCANNED, "ragged"))
def test_layers_of_a_scan_have_experts_of_their_own(name):
    layers = [mixtures.params(seed=k) for k in range(2)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *layers)
    mixture = mixtures.FORMS[name]

    def fn(p, x):
        _, inputs = lax.scan(jax.checkpoint(lambda x, own: (x + mixture(own, x), x)), x, p)
        return inputs

    stats, inputs = quiet(fn, stacked, [X], collect=("gram", "total")), fn(stacked, X)
    for k, own in enumerate(layers):
        check(stats, name, own, inputs[k], (k,))


def test_batches_add_up_and_shared_experts_see_every_token():
    def fn(p, x):
        return mixtures.ragged(p, x) + jax.nn.relu(x @ p["shared"]["up"]) @ p["shared"]["down"]

    p = P | {"shared": {"up": P["w1"][0], "down": P["w2"][0]}}
    whole = quiet(fn, p, [X])
    parts = quiet(fn, p, [X[:10], X[10:]])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert (whole["shared/up"].count == len(X)).all()
    np.testing.assert_allclose(whole["shared/up"].gram[0], X.T @ X, rtol=1e-5)
    np.testing.assert_allclose(whole["w1"].gram.sum(0), mixtures.TOP * (X.T @ X), rtol=1e-4, atol=1e-4)


def test_gated_experts_and_an_expert_bias():
    """SwiGLU experts, chosen by sigmoid scores with a bias that is not part of the gate, as in DeepSeek-V3."""

    def fn(p, x):
        scores = jax.nn.sigmoid(x @ p["router"])
        index = lax.top_k(scores + p["bias"], mixtures.TOP)[1]
        gate = jnp.take_along_axis(scores, index, 1)
        gate = gate / gate.sum(-1, keepdims=True)
        weight = (jax.nn.one_hot(index, 4) * gate[..., None]).sum(1)
        hidden = jax.nn.silu(jnp.einsum("bd,edf->ebf", x, p["w1"])) * jnp.einsum("bd,edf->ebf", x, p["w3"])
        return jnp.einsum("ebd,be->bd", jnp.einsum("ebf,efd->ebd", hidden, p["w2"]), weight)

    p = P | {"w3": mixtures.params(seed=5)["w1"], "bias": jnp.array([0.3, -0.2, 0.0, 0.1])}
    stats = quiet(fn, p, [X])
    scores = 1 / (1 + np.exp(-np.asarray(X @ p["router"], np.float64)))
    index = np.argsort(-(scores + np.asarray(p["bias"])), 1)[:, :2]
    for expert in range(4):
        own = np.asarray(X)[(index == expert).any(1)]
        for leaf in ("w1", "w3"):
            np.testing.assert_allclose(stats[leaf].gram[expert], own.T @ own, rtol=1e-4, atol=1e-4)
    gates = np.take_along_axis(scores, index, 1)
    gates = gates / gates.sum(1, keepdims=True)
    wanted = [gates[index == expert].sum() for expert in range(4)]
    np.testing.assert_allclose(stats.experts[0].gate, wanted, rtol=1e-4)
    assert {leaf for leaf, _ in stats.experts[0].leaves} == {"w1", "w2", "w3"}


def test_experts_in_leaves_of_their_own():
    def fn(p, x):
        stack = lambda name: jnp.stack([p[f"expert{j}"][name] for j in range(4)])
        return mixtures.slots_by_index(
            {"router": p["router"], "bias": p["bias"], "w1": stack("w1"), "w2": stack("w2")}, x
        )

    p = {f"expert{j}": {"w1": P["w1"][j], "w2": P["w2"][j]} for j in range(4)} | {
        "router": P["router"],
        "bias": P["bias"],
    }
    apart, together = quiet(fn, p, [X]), quiet(mixtures.slots_by_index, P, [X])
    for j in range(4):
        for leaf in ("w1", "w2"):
            np.testing.assert_allclose(apart[f"expert{j}/{leaf}"].gram[0], together[leaf].gram[j], rtol=1e-5, atol=1e-5)
            assert (apart[f"expert{j}/{leaf}"].count[0] == together[leaf].count[j]).all()
    np.testing.assert_allclose(apart.experts[0].weighted, together.experts[0].weighted, rtol=1e-5)


def test_experts_with_few_tokens_are_named():
    far = P | {"router": jnp.concatenate([P["router"][:, :2], -50 * jnp.ones((6, 1)), P["router"][:, 3:]], 1)}
    counts = np.bincount(np.asarray(mixtures.choice(far, jnp.abs(X))[1]).ravel(), minlength=4)
    few = ", ".join(f"{j} \\({n}\\)" for j, n in enumerate(counts) if n < 6)
    assert counts[2] == 0
    with pytest.warns(
        UserWarning, match=rf"fewer tokens than inputs(.|\n)*  w1: . of 4 matrices; number \(tokens\): {few}\n"
    ):
        stats = calibrate(mixtures.ragged, far, [jnp.abs(X)])
    assert (stats["w1"].count[2] == 0).all()
    assert (stats["w1"].gram[2] == 0).all()


def test_attention_before_a_mixture_keeps_its_sums():
    def attention(p, x):
        q, k, v = (jnp.einsum("td,dhk->thk", x, p[name]) for name in "qkv")
        mixed = jnp.einsum("hts,shk->thk", jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k)), v)
        return x + jnp.einsum("thk,hkd->td", mixed, p["o"])

    heads = {name: mixtures.params(seed=k)["w1"][:2].transpose(1, 0, 2)[..., :3] for k, name in enumerate("qkv")}
    p = {"attention": heads | {"o": mixtures.params(seed=9)["w1"][:2, :3, :6]}, "mixture": P}
    alone = calibrate(lambda p, x: attention(p["attention"], x), p, [X])
    both = quiet(lambda p, x: mixtures.ragged(p["mixture"], attention(p["attention"], x)), p, [X])
    for name in "qkvo":
        leaf = f"attention/{name}"
        assert alone[leaf].layout == both[leaf].layout
        np.testing.assert_allclose(alone[leaf].gram, both[leaf].gram, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", few(("ragged", "dense", "slots by masks"), "ragged"))
def test_reconstruction_and_wanda_do_each_expert_alone(name):
    stats = quiet(mixtures.FORMS[name], P, [X])
    weights = {"w1": P["w1"]}
    sparse = reconstruct(weights, quiet(mixtures.FORMS[name], P, [X], where="w1"), 0.5)
    wanda = prune(P, 0.5, criterion=criteria.wanda, stats=stats, where="w1", pattern=masks.Unstructured(axes=-2))
    for expert, (given, *_) in enumerate(mixtures.rows_of_experts(name, P, X)):
        alone = {"w": P["w1"][expert]}
        own = quiet(lambda p, x: x @ p["w"], alone, [jnp.asarray(given, jnp.float32)])
        one = reconstruct(alone, own, 0.5)
        np.testing.assert_array_equal(sparse.masks["w1"][expert], one.masks["w"])
        np.testing.assert_allclose(sparse.params["w1"][expert], one.params["w"], rtol=2e-3, atol=2e-4)
        best = prune(alone, 0.5, criterion=criteria.wanda, stats=own, pattern=masks.Unstructured(axes=-2))
        np.testing.assert_array_equal(wanda.masks["w1"][expert], best.masks["w"])
