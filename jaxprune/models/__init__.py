"""Models: decoders of the Llama family as plain JAX functions over the names of a Hugging Face checkpoint.

`decoder(config)` returns a function `fn(params, tokens) -> logits`, where `params` is the flat dict of a checkpoint on
disk (`model.layers.0.self_attn.q_proj.weight`, kernels [outputs, inputs]). `parts(config)` returns the same function as
embedding, block and head. `prune_folder`, `slim_folder` and `perplexity` read and run a folder block by block.
"""

from jaxprune.models.decoder import FAMILIES, block_params, decoder, parts
from jaxprune.models.pruning import perplexity, prune_folder
from jaxprune.models.slimming import slim_folder

__all__ = [
    "FAMILIES",
    "block_params",
    "decoder",
    "parts",
    "perplexity",
    "prune_folder",
    "slim_folder",
]
