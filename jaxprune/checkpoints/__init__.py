"""Saving: sparse parameters in safetensors files, and whole training states from Orbax checkpoints."""

from jaxprune.checkpoints.checkpoints import restore as restore
from jaxprune.checkpoints.files import optional as optional
from jaxprune.checkpoints.files import write_new as write_new
from jaxprune.checkpoints.sparse import Loaded as Loaded
from jaxprune.checkpoints.sparse import Saved as Saved
from jaxprune.checkpoints.sparse import load as load
from jaxprune.checkpoints.sparse import save as save
