"""Takes the snapshot of a tree that a program saves with Orbax: names and types on disk are those that Orbax itself would write."""

import dataclasses
from typing import Any

import numpy as np

from jaxckpt.job.plan import Plan
from jaxckpt.leaf_kinds import dtypes
from jaxckpt.saving import snapshot
from jaxckpt.storage.handlers.arguments import LeafArguments
from jaxckpt.storage.item import notes
from jaxckpt.storage.item.content import ArrayContent, Entry, Piece, Snapshot
from jaxckpt.tree import pytrees


def take(item: Any, save_args: Any, plan: Plan | None, *, copy: bool) -> Snapshot:
    """Takes the snapshot of a pytree, or this process's part of it.

    Args:
      item: the pytree.
      save_args: a tree of ``ocp.SaveArgs``; None for none.
      plan: tells which process of the job owns which piece; None if this process has everything.
      copy: whether to copy mutable host memory (numpy), because the caller may change it before it is written.

    Raises:
      TypeError: a leaf cannot be stored; the message names it.
      ValueError: the tree is empty, Orbax cannot tell two leaves apart, `save_args` does not fit, or asks for what is not possible.
    """
    tree = pytrees.flatten(item)
    if not tree.flat.leaves and not item:
        raise ValueError("item: the tree is empty. Orbax stores only trees with a leaf or a container in them.")
    arguments = [None] * len(tree.flat.leaves) if save_args is None else tree.beside(save_args, "save_args")
    wanted = [LeafArguments.of(given, leaf.name) for given, leaf in zip(arguments, tree.flat.leaves, strict=True)]
    taken = snapshot.take([tree.flat], plan, copy=copy)
    # The entries of empty containers follow those of the leaves.
    leaves = [_as_wanted(entry, each) for entry, each in zip(taken.entries, wanted, strict=False)]
    return dataclasses.replace(taken, entries=(*leaves, *taken.entries[len(leaves) :]))


def _as_wanted(entry: Entry, wanted: LeafArguments) -> Entry:
    content = entry.content
    if not isinstance(content, ArrayContent):
        # A str has neither a dtype nor chunks.
        return entry
    if content.note == notes.JAX_ARRAY.word:
        # Unlike a Checkpoint, a program that uses Orbax gets the type that Orbax would write.
        content = content._replace(value_type="jax.Array", note=None)
    if wanted.dtype is not None and wanted.dtype != content.dtype:
        content = _converted(entry, content, wanted.dtype)
    return Entry(entry.path, content._replace(chunk_byte_size=wanted.chunk_byte_size))


def _converted(entry: Entry, content: ArrayContent, dtype: np.dtype[Any]) -> ArrayContent:
    """Returns the content with another dtype. As in Orbax, numpy's rules hold: a float becomes an int without its fraction."""
    if content.key_impl is not None:
        raise ValueError(f"{entry.name}: SaveArgs.dtype is {dtype}, but PRNG keys cannot have another dtype.")
    if content.note is not None and content.note != notes.NUMPY_SCALAR.word:
        raise ValueError(f"{entry.name}: SaveArgs.dtype is {dtype}, but this leaf ({content.note}) has no dtype.")
    if (reason := dtypes.refusal(dtype)) is not None:
        raise ValueError(f"{entry.name}: SaveArgs.dtype: {reason}")
    pieces = []
    for piece in content.pieces:
        assert isinstance(piece.source, np.ndarray)
        if content.dtype.kind == "c" and dtype.kind != "c":
            # The same values as `astype`, without its warning.
            pieces.append(Piece(piece.start, piece.shape, piece.source.real.astype(dtype)))
        else:
            pieces.append(Piece(piece.start, piece.shape, piece.source.astype(dtype)))
    return content._replace(dtype=dtype, pieces=tuple(pieces))
