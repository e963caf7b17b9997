"""The example of other runtimes: the files compute what JAX computes, at another batch size too, and are smaller."""

import re

import pytest

# Where each runtime's files come from; the extra `export` has all of it, in an environment of its own.
_PACKAGES = {"onnx": ("jax2onnx", "onnxruntime"), "iree": ("iree.compiler", "iree.runtime"), "stablehlo": ()}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", _PACKAGES)
@pytest.mark.parametrize("network", ["cnn", "vit", "decoder"])
def test_files_of_slim_networks_compute_what_jax_computes(run, tmp_path, network, runtime):
    for package in _PACKAGES[runtime]:
        _ = pytest.importorskip(package, reason="pip install '.[export]' in an environment of its own")
    sizes = ("--width", 16, "--steps", 3, "--rounds", 2, "--batch", 4)
    out = run("export_runtimes.py", network, runtime, "--output", tmp_path, *sizes)
    rows = re.findall(rf"^{runtime} +(whole|slim) +([\d,]+) bytes, at most (\S+) from JAX$", out, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["whole", "slim"]
    whole, slim = (int(size.replace(",", "")) for _, size, _ in rows)
    assert slim < whole
    assert all(float(apart) < 1e-5 for _, _, apart in rows)
    assert float(re.findall(r"^(\S+) times fewer FLOPs$", out, re.MULTILINE)[0]) > 1.8
