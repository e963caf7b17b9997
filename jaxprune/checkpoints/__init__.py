"""Files: networks in safetensors, training states in Orbax checkpoints, runs that can be resumed.

What is on disk is whole or absent, whenever the process ends, and nothing is overwritten. What is read is checked
against what the caller expects, leaf by leaf, before it is used.
"""

from jaxprune.checkpoints.gguf import import_gguf
from jaxprune.checkpoints.huggingface import Folder, FolderWriter
from jaxprune.checkpoints.networks import Loaded, Saved, load, save
from jaxprune.checkpoints.runs import Run
from jaxprune.checkpoints.slimmed import load_slim, save_slim
from jaxprune.checkpoints.states import restore

__all__ = [
    "Folder",
    "FolderWriter",
    "Loaded",
    "Run",
    "Saved",
    "import_gguf",
    "load",
    "load_slim",
    "restore",
    "save",
    "save_slim",
]
