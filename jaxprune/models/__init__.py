"""Models: decoders of the Llama family as plain JAX functions over the names of a Hugging Face checkpoint.

`decoder(config)` returns a function `fn(params, tokens) -> logits`, where `params` is the flat dict of a checkpoint as
it lies on disk (`model.layers.0.self_attn.q_proj.weight`, kernels [outputs, inputs]). `parts(config)` returns the same
function cut into embedding, block and head, for work that goes block by block.
"""

from jaxprune.models.decoder import FAMILIES, Parts, block_params, decoder, parts
from jaxprune.models.pruning import BlockResult, Perplexity, is_pruned, perplexity, prune_folder
from jaxprune.models.slimming import SlimResult, slim_folder

__all__ = [
    "FAMILIES",
    "BlockResult",
    "Parts",
    "Perplexity",
    "SlimResult",
    "block_params",
    "decoder",
    "is_pruned",
    "parts",
    "perplexity",
    "prune_folder",
    "slim_folder",
]
