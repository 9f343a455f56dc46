"""Memory of the center that its peers on the same host can read: one copy moves the bytes, without the network's protocols.

The center tells the peers over their connections how to open the memory. They open it in /proc, which the kernel allows to processes of
the same user. If it cannot be opened (on another kind of system, or in another container), the bytes go through the connection instead.
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
      offer: the values that another process needs to open the memory; they fit into JSON.
    """

    def __init__(self, nbytes: int) -> None:
        """Creates the memory.

        Args:
          nbytes: bytes to share. The kernel allocates them when they are used first.

        Raises:
          OSError: this system does not have such memory.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError("This system has no memory files.")
        descriptor = os.memfd_create("jaxckpt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False
        os.ftruncate(descriptor, nbytes + _PROOF_BYTES)
        # The seals keep other processes from making the file smaller, which would kill the processes that use the memory.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        proof = secrets.token_bytes(_PROOF_BYTES)
        os.pwrite(descriptor, proof, nbytes)
        # The mapping is freed with the last array that uses it.
        self._map = _mapped(descriptor, nbytes)
        self.offer: dict[str, Any] = {"pid": os.getpid(), "fd": descriptor, "size": nbytes, "proof": proof.hex()}

    def withdraw(self) -> None:
        """Ends the offer. Processes that have opened the memory can go on using it. Idempotent."""
        self._close()

    def array(self, at: int, nbytes: int) -> np.ndarray:
        """Returns a part of the memory as an array of uint8.

        Args:
          at: position of the first byte.
          nbytes: number of bytes.
        """
        return np.frombuffer(self._map, np.uint8, nbytes, at)


class OpenedMemory:
    """Memory of another process of this host."""

    def __init__(self, offer: Mapping[str, Any]) -> None:
        """Opens the memory.

        Args:
          offer: the `SharedMemory.offer` of the other process.

        Raises:
          OSError: the memory cannot be opened here, or the file that was opened is another one.
        """
        descriptor = os.open(f"/proc/{int(offer['pid'])}/fd/{int(offer['fd'])}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # In another PID namespace this process id may belong to any process.
            if os.pread(descriptor, _PROOF_BYTES, int(offer["size"])) != bytes.fromhex(offer["proof"]):
                raise OSError("The memory that was opened is not the one that was offered.")
            # Copying from a mapping takes half as long as pread.
            self._map = _mapped(descriptor, int(offer["size"]), mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def read(self, at: int, targets: Sequence[np.ndarray]) -> None:
        """Fills arrays, one after the other, with the bytes of the memory.

        Args:
          at: position of the first byte.
          targets: the arrays.
        """
        for target in targets:
            target[...] = self._view(at, target)
            at += target.nbytes

    def _view(self, at: int, like: np.ndarray) -> np.ndarray:
        return np.frombuffer(self._map, np.uint8, like.nbytes, at).view(like.dtype).reshape(like.shape)


def _mapped(descriptor: int, nbytes: int, access: int = mmap.ACCESS_WRITE) -> mmap.mmap:
    mapped = mmap.mmap(descriptor, nbytes, access=access)
    # Some kernels do not have huge pages.
    with contextlib.suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def open_offered(offer: Mapping[str, Any]) -> OpenedMemory | None:
    """Returns the opened memory of another process; None if it cannot be opened here.

    Args:
      offer: the `SharedMemory.offer` of the other process.
    """
    with contextlib.suppress(OSError):
        return OpenedMemory(offer)
    return None
