"""Checkpoints: networks in safetensors, trees in msgpack and Orbax, resumable runs, Hugging Face folders.

A file or folder is written completely or not at all, even if the process is killed, and nothing is overwritten. Before
use, every leaf that is read is compared with the caller's description.
"""

from jaxprune.checkpoints.gguf import import_gguf
from jaxprune.checkpoints.huggingface import Folder, FolderWriter, named_roles
from jaxprune.checkpoints.networks import load, load_slim, save, save_slim
from jaxprune.checkpoints.states import Run, read, restore, write

__all__ = [
    "Folder",
    "FolderWriter",
    "Run",
    "import_gguf",
    "load",
    "load_slim",
    "named_roles",
    "read",
    "restore",
    "save",
    "save_slim",
    "write",
]
