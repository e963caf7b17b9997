"""jaxprune: pruning for JAX, as pure functions."""
