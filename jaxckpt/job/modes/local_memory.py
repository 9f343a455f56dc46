"""Memory of the center that its peers on the same host read: bytes get there by one copy, without the network's protocols.

The center tells the others over their connections where it is; they open it in /proc, which the kernel permits to processes of the same
user. Nothing depends on it: where it cannot be opened (another kind of system, a container of its own), bytes go through the connection.
"""

import contextlib
import fcntl
import mmap
import os
import secrets
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PROOF_BYTES = 32


class SharedMemory:
    """Memory of this process that other processes can open.

    Attributes:
      offer: what another process needs to open it; fits into JSON.
    """

    def __init__(self, nbytes: int) -> None:
        """Args: bytes to share; the kernel gives them when they are used first.

        Raises:
          OSError: this system has no such memory.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError("This system has no memory files.")
        descriptor = os.memfd_create("jaxckpt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False
        os.ftruncate(descriptor, nbytes + _PROOF_BYTES)
        # Nobody who opens it can make it smaller, which would kill who uses it.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        proof = secrets.token_bytes(_PROOF_BYTES)
        os.pwrite(descriptor, proof, nbytes)
        # Goes when the last array that uses it goes.
        self._map = _mapped(descriptor, nbytes)
        self.offer: dict[str, Any] = {"pid": os.getpid(), "fd": descriptor, "size": nbytes, "proof": proof.hex()}

    def withdraw(self) -> None:
        """Ends the offer; those who have opened it go on. Idempotent."""
        self._close()

    def array(self, at: int, nbytes: int) -> np.ndarray:
        """Returns a part of the memory as an array of uint8."""
        return np.frombuffer(self._map, np.uint8, nbytes, at)


class OpenedMemory:
    """Memory of another process of this host."""

    def __init__(self, offer: Mapping[str, Any]) -> None:
        """Args: the `SharedMemory.offer` of the other process.

        Raises:
          OSError: it cannot be opened here, or what is there is something else.
        """
        descriptor = os.open(f"/proc/{int(offer['pid'])}/fd/{int(offer['fd'])}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # In another namespace of processes the number may be that of any process.
            if os.pread(descriptor, _PROOF_BYTES, int(offer["size"])) != bytes.fromhex(offer["proof"]):
                raise OSError("The memory that is there is not the one that was offered.")
            # To copy from a mapping takes half as long as pread.
            self._map = _mapped(descriptor, int(offer["size"]), mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def read(self, at: int, targets: Sequence[np.ndarray]) -> None:
        """Fills arrays, one after the other, with the bytes that are there."""
        for target in targets:
            target[...] = self._view(at, target)
            at += target.nbytes

    def _view(self, at: int, like: np.ndarray) -> np.ndarray:
        return np.frombuffer(self._map, np.uint8, like.nbytes, at).view(like.dtype).reshape(like.shape)


def _mapped(descriptor: int, nbytes: int, access: int = mmap.ACCESS_WRITE) -> mmap.mmap:
    mapped = mmap.mmap(descriptor, nbytes, access=access)
    with contextlib.suppress(OSError):  # A kernel without them.
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def open_offered(offer: Mapping[str, Any]) -> OpenedMemory | None:
    """Opens what another process offers; None if that cannot be done here."""
    with contextlib.suppress(OSError):
        return OpenedMemory(offer)
    return None
