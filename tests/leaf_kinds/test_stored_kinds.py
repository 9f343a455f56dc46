"""What a checkpoint says of a leaf is enough to tell its kind, for readers without a target."""

import pytest

from jaxckpt.leaf_kinds.registry import stored_kind
from jaxckpt.storage.item.tree_metadata import StoredLeaf


@pytest.mark.parametrize(
    ("value_type", "note", "key_impl", "expected"),
    [
        ("jax.Array", None, None, "jax.Array"),
        # Saved by several processes, which tell Orbax that it is a numpy array.
        ("np.ndarray", "jax", None, "jax.Array"),
        ("jax.Array", None, "threefry2x32", "PRNG key"),
        ("np.ndarray", None, None, "np.ndarray"),
        ("np.ndarray", "bytes", None, "bytes"),
        ("scalar", None, None, "scalar"),
        ("scalar", "numpy", None, "numpy scalar"),
        ("string", None, None, "str"),
    ],
    ids=["jax", "jax of a job", "key", "numpy", "bytes", "python scalar", "numpy scalar", "str"],
)
def test_the_name_that_readers_see(value_type: str, note: str | None, key_impl: str | None, expected: str) -> None:
    leaf = StoredLeaf((("x", False),), "x", value_type, note, key_impl)
    assert stored_kind(leaf).reader_name == expected
