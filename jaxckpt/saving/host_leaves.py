"""This process's part of leaves in host memory: every process has them, and process 0 adds the data."""

import numpy as np

from jaxckpt.job.plan import HOST_OWNER, Plan
from jaxckpt.leaf_kinds.kind import Content
from jaxckpt.leaf_kinds.registry import kind_of
from jaxckpt.saving.shards import first_device
from jaxckpt.storage.item.content import ArrayContent, Piece
from jaxckpt.tree.flatten import Leaf


def part(leaf: Leaf, plan: Plan, copy: bool) -> Content:
    """Returns the content of a leaf in host memory: the same description on every process. Only process 0 adds the data.

    Args:
      leaf: the leaf.
      plan: tells which process owns which piece.
      copy: whether to copy mutable host memory.
    """
    own = kind_of(leaf.value).take(leaf, copy and plan.process == HOST_OWNER)
    return _described(own, plan) if isinstance(own, ArrayContent) else own


def _described(content: ArrayContent, plan: Plan) -> ArrayContent:
    """Returns the content of a host leaf, with the same description on every process. Only process 0 has the data.

    Args:
      content: the content that this process has.
      plan: tells which process owns which piece.
    """
    sharding = first_device() if content.value_type == "jax.Array" else None
    pieces: tuple[Piece, ...] = ()
    if plan.process == HOST_OWNER:
        pieces = (Piece((0,) * len(content.shape), content.shape, _whole(content)),)
    return content._replace(
        write_shape=content.shape,
        pieces=pieces,
        sharding=sharding,
        share=plan.host_share(content.shape),
    )


def _whole(content: ArrayContent) -> np.ndarray:
    if len(content.pieces) == 1:
        return content.pieces[0].fetch(content.pieces[0].start, content.pieces[0].shape)
    array = np.empty(content.shape, content.dtype)
    for piece in content.pieces:
        box = tuple(slice(start, start + extent) for start, extent in zip(piece.start, piece.shape, strict=True))
        array[box] = piece.fetch(piece.start, piece.shape)
    return array
