"""Plots hold the values they are given, and matplotlib is only needed when one is drawn."""

import builtins

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.assess import complexity
from jaxprune.assess.plots import accuracy_by_sparsity, sparsity_by_leaf

CURVES = {"gradual": [(0.9, 0.8), (0.8, 0.9), (0.9, 0.6)], "random": [(0.98, 0.5)]}


def cost(kept):
    mask = {"v": jnp.arange(8)[None] < kept, "w": jnp.ones((8, 8), bool)}
    params = {"v": jnp.ones((8, 8)), "w": jnp.ones((8, 8))}
    return complexity(lambda p, x: x @ p["v"] @ p["w"], params, mask, jnp.ones((1, 8)))


def test_accuracy_by_sparsity(tmp_path):
    figure = accuracy_by_sparsity(CURVES, dense=0.95)
    [axes] = figure.axes
    gradual, _random, dense = axes.get_lines()
    np.testing.assert_allclose(np.asarray(gradual.get_xdata()), [0.2, 0.1])
    np.testing.assert_allclose(np.asarray(gradual.get_ydata()), [0.9, 0.7])
    assert set(np.asarray(dense.get_ydata()).tolist()) == {0.95}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["80", "90", "98"]
    figure.savefig(tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 1000


def test_a_notebook_shows_a_figure_as_a_picture():
    assert getattr(accuracy_by_sparsity(CURVES), "_repr_png_")()[:4] == b"\x89PNG"  # noqa: B009


def test_sparsity_by_leaf(tmp_path):
    figure = sparsity_by_leaf({"a": cost(4), "b": cost(2)})
    [axes] = figure.axes
    widths = [bar.get_width() for bars in axes.containers for bar in bars]
    assert widths == [50.0, 0.0, 75.0, 0.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["v", "w"]
    figure.savefig(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_errors():
    with pytest.raises(ValueError, match="at least one"):
        _ = accuracy_by_sparsity({"a": []})
    with pytest.raises(ValueError, match=r"\[0, 1\), the fraction removed; got a: 90"):
        _ = accuracy_by_sparsity({"a": [(90, 0.5)]})
    dense = complexity(jnp.matmul, jnp.ones((2, 2)), None, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="no network with a pruned leaf"):
        _ = sparsity_by_leaf({"dense": dense})
    with pytest.raises(ValueError, match="v: not in dense"):
        _ = sparsity_by_leaf({"a": cost(4), "dense": dense})


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match="need matplotlib: pip install matplotlib"):
        _ = accuracy_by_sparsity(CURVES)
