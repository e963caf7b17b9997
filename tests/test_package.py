"""The front door: what it offers, and what it costs to open."""

import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jaxprune

# Frameworks and extras: whoever wants masks for an Equinox model need not load them.
_FRAMEWORKS = {"flax.nnx", "flax.linen", "flax.training", "equinox", "haiku", "torch", "tensorflow"}
# These take longer to import than jaxprune itself; `import scipy` loads them at first use.
_SLOW = {"scipy.special", "scipy.sparse", "scipy.stats"}
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


def test_the_front_door_imports_no_framework_no_extra_and_nothing_slow(root: Path):
    loaded = json.loads(_python(root, "import json, sys, jaxprune; print(json.dumps(sorted(sys.modules)))"))
    assert "jax" in loaded
    assert (_FRAMEWORKS | _EXTRAS | _SLOW | {"orbax"}).intersection(loaded) == set()


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


def test_each_public_name_stands_in_one_room():
    rooms = {name: vars(jaxprune)[name] for name in jaxprune.__all__ if inspect.ismodule(vars(jaxprune)[name])}
    owners: dict[str, list[str]] = {}
    for room, module in rooms.items():
        assert all(hasattr(module, name) for name in module.__all__), room
        assert module.__all__ == sorted(set(module.__all__), key=lambda n: (not n.isupper(), not n[0].isupper(), n)), (
            room
        )
        for name in module.__all__:
            owners.setdefault(name, []).append(room)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}
    # The front door repeats what is used most, and adds only what has no room of its own.
    own = {name for name in jaxprune.__all__ if name not in rooms}
    assert own - owners.keys() == {"How", "LeafRole", "Roles", "Selector", "find_roles", "prune"}


def test_every_public_function_and_class_explains_itself():
    for room in jaxprune.__all__:
        module = vars(jaxprune)[room]
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            if inspect.isclass(member) or inspect.isfunction(member):
                assert (member.__doc__ or "").strip(), f"{room}.{name}"


def test_one_version(root: Path):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert jaxprune.__version__ == project["version"]
