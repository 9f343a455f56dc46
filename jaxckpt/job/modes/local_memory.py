"""Memory that processes of one host share: one copy moves the bytes, without the network's protocols.

The process that has the bytes owns the memory: a peer in a save, the IO process in a restore. The memory consists of *slots* of one size.
The other process asks the owner over their connection to fill a slot, reads the slot, and asks for more. So a slot is filled again only
when the other process has read it. The memory belongs to one call at a time; only its owner writes to it.

The owner tells over the connection how to open the memory. The other process opens it in /proc, read-only, which the kernel allows to
processes of the same user. The memory is no file of any file system, so the size of /dev/shm does not matter. If there is no such memory,
or it cannot be opened (on another kind of system, or in another container), the bytes go through the connection instead.
"""

import contextlib
import fcntl
import mmap
import os
import secrets
import weakref
from collections.abc import Sequence

import numpy as np

from jaxckpt.errors import ProcessError
from jaxckpt.job.protocol.parts import SlotOffer

# Most bytes of a slot. Bytes in a larger one would leave the processor's cache before the other process reads them; smaller ones cost more
# messages.
SLOT_BYTES = 2 << 20
_PROOF_BYTES = 32
# MFD_NOEXEC_SEAL, which Python does not name yet. A system may require it (vm.memfd_noexec); Linux before 6.3 does not know it.
_NOEXEC = 0x8


class SharedSlots:
    """Memory of this process that another process can open. The memory is freed when its last user has let go of it.

    Attributes:
      offer: what the other process needs to open the memory.
    """

    def __init__(self, count: int, slot_bytes: int) -> None:
        """Creates the memory.

        Args:
          count: number of slots.
          slot_bytes: bytes of each slot.

        Raises:
          OSError: this system does not have such memory, or does not have so much of it.
        """
        nbytes = count * slot_bytes
        descriptor = _memory_file()
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False
        os.ftruncate(descriptor, nbytes + _PROOF_BYTES)
        # Allocates the memory now. If it were allocated at the first use, and there was none left, the kernel would kill the process.
        os.posix_fallocate(descriptor, 0, nbytes + _PROOF_BYTES)
        # The seal keeps other processes from making the file smaller, which would kill the processes that use the memory.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        proof = secrets.token_bytes(_PROOF_BYTES)
        os.pwrite(descriptor, proof, nbytes)
        self._map = _mapped(descriptor, nbytes, mmap.ACCESS_WRITE)
        self.offer = SlotOffer(os.getpid(), descriptor, proof.hex(), count, slot_bytes)

    def slot(self, number: int, nbytes: int) -> np.ndarray:
        """Returns the beginning of a slot as an array of uint8.

        Args:
          number: number of the slot.
          nbytes: bytes that the other process asked for.

        Raises:
          ProcessError: there is no such slot, or it is smaller.
        """
        return _slot(self._map, self.offer, number, nbytes)

    def withdraw(self) -> None:
        """Ends the offer. A process that has opened the memory can go on using it. Idempotent."""
        self._close()


class OpenedSlots:
    """Memory that another process of this host shares.

    Attributes:
      offer: the offer of the other process.
    """

    def __init__(self, offer: SlotOffer) -> None:
        """Opens the memory.

        Args:
          offer: the `SharedSlots.offer` of the other process.

        Raises:
          OSError: the memory cannot be opened here, or the file that was opened is another one.
        """
        self.offer = offer
        nbytes = offer.count * offer.slot_bytes
        descriptor = os.open(f"/proc/{offer.pid}/fd/{offer.fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # In another PID namespace this process id may belong to any process.
            if os.pread(descriptor, _PROOF_BYTES, nbytes) != bytes.fromhex(offer.proof):
                raise OSError("The memory that was opened is not the one that was offered.")
            if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise OSError("The memory that was opened could become smaller.")
            self._map = _mapped(descriptor, nbytes, mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def slot(self, number: int, nbytes: int) -> np.ndarray:
        """Returns the beginning of a slot as a read-only array of uint8. Use it only until the owner is asked to fill the slot again.

        Args:
          number: number of the slot.
          nbytes: bytes that the owner was asked for.
        """
        return _slot(self._map, self.offer, number, nbytes)

    def read(self, number: int, targets: Sequence[np.ndarray]) -> None:
        """Fills arrays, one after the other, with the bytes of a slot.

        Args:
          number: number of the slot.
          targets: the arrays.
        """
        flat, at = self.slot(number, sum(target.nbytes for target in targets)), 0
        for target in targets:
            target[...] = flat[at : at + target.nbytes].view(target.dtype).reshape(target.shape)
            at += target.nbytes


def share_slots(count: int, slot_bytes: int) -> SharedSlots | None:
    """Returns new shared memory; None if this system does not have it.

    Args:
      count: number of slots.
      slot_bytes: bytes of each slot.
    """
    with contextlib.suppress(OSError):
        return SharedSlots(count, slot_bytes)
    return None


def open_slots(offer: SlotOffer | None) -> OpenedSlots | None:
    """Returns the opened memory of another process; None if it offers none, or if it cannot be opened here.

    Args:
      offer: the `SharedSlots.offer` of the other process.
    """
    if offer is not None:
        with contextlib.suppress(OSError):
            return OpenedSlots(offer)
    return None


def _memory_file() -> int:
    if not hasattr(os, "memfd_create"):
        raise OSError("This system has no memory files.")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("jaxckpt", flags | _NOEXEC)
    except OSError:
        return os.memfd_create("jaxckpt", flags)


def _mapped(descriptor: int, nbytes: int, access: int) -> mmap.mmap:
    # Copying from a mapping takes half as long as pread. The mapping is freed with the last array that uses it.
    mapped = mmap.mmap(descriptor, nbytes, access=access)
    # Some kernels do not have huge pages.
    with contextlib.suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def _slot(mapped: mmap.mmap, offer: SlotOffer, number: int, nbytes: int) -> np.ndarray:
    if not 0 <= number < offer.count or not 0 <= nbytes <= offer.slot_bytes:
        raise ProcessError(
            f"{nbytes} bytes in slot {number}: there are {offer.count} slots of {offer.slot_bytes} bytes"
        )
    return np.frombuffer(mapped, np.uint8, nbytes, number * offer.slot_bytes)
