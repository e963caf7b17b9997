"""Checkpoints: networks in safetensors, training states in Orbax, resumable runs, Hugging Face folders.

A file or folder is written completely or not at all, even if the process is killed, and nothing is overwritten. Before
use, every leaf that is read is compared with what the caller expects.
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
