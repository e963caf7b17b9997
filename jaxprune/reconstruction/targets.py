"""What a kernel is asked to remove from one weight matrix: so many entries, n of m, or what a mask says."""

from typing import NamedTuple

import jax


class Entries(NamedTuple):
    """So many entries of the whole matrix.

    Attributes:
      removed: a Python integer, or an int32 scalar, which may be traced.
    """

    removed: jax.Array | int


class Grouped(NamedTuple):
    """In every output, n kept of each m consecutive inputs. Both are static.

    Attributes:
      n: how many are kept.
      m: how many there are; it must divide the number of inputs.
    """

    n: int
    m: int


class Given(NamedTuple):
    """The mask is known, only the kept weights are to be changed.

    Attributes:
      mask: bool[inputs, outputs], True = kept.
    """

    mask: jax.Array


Target = Entries | Grouped | Given


def check_groups(target: Grouped, inputs: int) -> None:
    """Raises unless n of m is a pattern and m divides the inputs."""
    if not 0 < target.n < target.m:
        raise ValueError(f"n of m needs 0 < n < m, got n = {target.n}, m = {target.m}")
    if inputs % target.m:
        raise ValueError(
            f"groups of m = {target.m} do not divide {inputs} inputs; take an m that does, or leave it out"
        )
