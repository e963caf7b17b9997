"""The front door: what it offers, and what it costs to open."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jaxprune

# Frameworks and extras: whoever wants masks for an Equinox model need not load them.
_FRAMEWORKS = {"flax.nnx", "flax.linen", "flax.training", "equinox", "haiku", "torch", "tensorflow"}
# What neither jaxprune nor anything it depends on pulls in.
_EXTRAS = {
    *("chex", "tqdm", "matplotlib", "safetensors", "sklearn", "PIL"),
    *("tensorflow_datasets", "array_record", "hypothesis", "pytest", "equinox"),
}

_IMPORT_ALL = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import jaxprune
for module in pkgutil.walk_packages(jaxprune.__path__, "jaxprune."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def _python(root: Path, source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_front_door_imports_no_framework_and_no_extra(root: Path):
    loaded = json.loads(_python(root, "import json, sys, jaxprune; print(json.dumps(sorted(sys.modules)))"))
    assert "jax" in loaded
    assert (_FRAMEWORKS | _EXTRAS | {"orbax"}).intersection(loaded) == set()


def test_every_module_imports_without_the_extras(root: Path):
    assert _python(root, _IMPORT_ALL.format(extras=_EXTRAS)) == ""


def test_importing_starts_no_device(root: Path):
    # A program chooses its devices, or joins a cluster, after its imports.
    source = "import jaxprune, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count('cpu'))"
    assert _python(root, source).strip() == "3"


def test_the_front_door_leads_to_every_room_and_to_what_is_used_most(root: Path):
    # In a process of its own: here other tests have imported the rooms already.
    offered = json.loads(_python(root, "import json, jaxprune; print(json.dumps(dir(jaxprune)))"))
    rooms = {path.stem for path in (root / "jaxprune").iterdir() if path.name[0] not in "._"} - {"cli", "py"}
    assert rooms - set(offered) == set()
    assert {"prune", "sparsify", "get_masks"} - set(offered) == set()


def test_one_version(root: Path):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert jaxprune.__version__ == project["version"]
