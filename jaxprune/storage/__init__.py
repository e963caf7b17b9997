"""Saving: sparse parameters in safetensors files, and whole training states from Orbax checkpoints."""

from jaxprune.storage.checkpoints import restore as restore
from jaxprune.storage.files import optional as optional
from jaxprune.storage.files import write_new as write_new
from jaxprune.storage.sparse import Loaded as Loaded
from jaxprune.storage.sparse import Saved as Saved
from jaxprune.storage.sparse import load as load
from jaxprune.storage.sparse import save as save
