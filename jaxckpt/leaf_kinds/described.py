"""The description of a stored leaf, as readers return it."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LeafMetadata:
    """The description of one leaf in a checkpoint.

    Attributes:
      name: the keys of the path to the leaf, joined by ``/``.
      kind: "jax.Array", "np.ndarray", "scalar" (Python), "numpy scalar", "str", "bytes" or "PRNG key". For a leaf that only a type
        handler of the program that saved it can read (a *foreign* leaf), the word that Orbax uses for its type.
      shape: shape of the stored array; () for a scalar, a str and a foreign leaf.
      dtype: dtype of the stored array; None for a str and a foreign leaf.
      nbytes: size of the value in bytes; 0 for a foreign leaf.
      sharding: the sharding that the array was saved with, as Orbax stores it (JSON text), or None.
      key_impl: implementation of a PRNG key, or None.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    nbytes: int
    sharding: str | None
    key_impl: str | None
