"""The count of bytes that a program moves, and the benchmarks that print it."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import collectives, total

# As XLA writes programs: a loop of 5 turns with a loop of unknown length in it, and one collective of each kind.
PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%inner (p: (f32[8])) -> (f32[8]) {
  %g = bf16[4,2]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
}

%inner_condition (p: (f32[8])) -> pred[] {
  ROOT %t = pred[] constant(true)
}

%outer (q: (f32[8])) -> (f32[8]) {
  %r = (f32[3]{0}, s32[]) all-reduce(%q, %n), channel_id=2, replica_groups={{0,1}}, to_apply=%add
  %w = (f32[8]{0}) while(%q), condition=%inner_condition, body=%inner
}

%outer_condition (q: (f32[8])) -> pred[] {
  ROOT %t = pred[] constant(true)
}

%left (x: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} collective-permute(%x), channel_id=3, source_target_pairs={{0,1}}
}

%right (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %s = pred[2]{0} reduce-scatter(%x), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %l = (f32[8]{0}) while(%x), condition=%outer_condition, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %d = f32[8]{0} conditional(%t, %x, %x), branch_computations={%left, %right}
}
"""


def test_every_collective_counts_as_often_as_it_runs():
    compiled = SimpleNamespace(as_text=lambda: PROGRAM)
    found = {each.kind: each for each in collectives(compiled, turns=(3, 7))}
    assert found["all-gather"] == ("all-gather", 16, 16, 5 * 3)
    assert found["all-reduce"] == ("all-reduce", 12, 16, 5)
    assert found["collective-permute"] == ("collective-permute", 32, 32, 1)
    assert found["reduce-scatter"] == ("reduce-scatter", 8, 8, 1)
    assert total(collectives(compiled)) == 5 * 16 + 5 * 16 + 32 + 8


def test_what_it_cannot_read_is_an_error():
    with pytest.raises(ValueError, match="no text"):
        _ = collectives(SimpleNamespace(as_text=lambda: None))
    started = PROGRAM.replace("all-gather(", "all-gather-start(")
    with pytest.raises(ValueError, match="asynchronous collective"):
        _ = collectives(SimpleNamespace(as_text=lambda: started))


def test_a_known_program_moves_what_it_must(devices):
    mesh = jax.sharding.Mesh(devices, ("x",))
    rows = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    turned = jax.jit(lambda a: a.sum(0), out_shardings=NamedSharding(mesh, P())).lower(rows).compile()
    assert [(each.kind, each.size) for each in collectives(turned)] == [("all-reduce", 16)]
    gathered = jax.jit(lambda a: a + 1, out_shardings=NamedSharding(mesh, P())).lower(rows).compile()
    assert [(each.kind, each.size) for each in collectives(gathered)] == [("all-gather", 256)]


def run(root: Any, name: str, folder: Any) -> tuple[str, Any]:
    command = [sys.executable, str(root / "benchmarks" / f"bench_{name}.py"), "--quick", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_the_benchmark_of_devices_and_processes_runs(root, tmp_path):
    out, found = run(root, "distributed", tmp_path)
    assert [(row["devices"], row["processes"]) for row in found["rows"]] == [(1, 1), (2, 2)]
    assert found["rows"][0]["select"]["bytes"] == 0
    assert "| 2 | 2 |" in out


@pytest.mark.slow
def test_the_benchmark_of_a_large_model_runs(root, tmp_path):
    out, found = run(root, "large", tmp_path)
    assert "sparse step" in out
    for row in found["rows"]:
        # What the state takes is known exactly; scalars, and packing to whole bytes, come on top.
        assert 0 <= row["arguments"] - found["paper"][row["program"]]["state"] <= 1000 + 0.01 * row["arguments"]
