"""Reading the memory of another process of this host: bytes get here by one copy, and the other process has nothing to do for it.

The kernel permits it to processes of the same user (process_vm_readv, of Linux). Where it asks for the consent of the process that is
read (Yama's ptrace_scope 1), the lender gives it. Nothing depends on it: where it cannot be done (another kind of system, a container of
its own), bytes go through the connection. Memory is only read: what comes too late, after the other process has given up, is read for
nothing, and the call has failed; were it written, it would destroy what is there by then.
"""

import ctypes
import errno
import functools
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

_PROOF_BYTES = 32
_PR_SET_PTRACER = 0x59616D61  # "Yama"


class _Consent:
    """The one process that may read this one, where the kernel asks for consent. Several saves may need the same one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader = self._count = 0

    def give(self, reader: int) -> bool:
        """Allows a process, by its id; returns whether that could be done: not while another one is allowed it."""
        with self._lock:
            if self._count and self._reader != reader:
                return False
            if _prctl(_PR_SET_PTRACER, reader) != 0:
                return False
            self._reader = reader
            self._count += 1
            return True

    def take_back(self) -> None:
        """Ends what one `give` began."""
        with self._lock:
            self._count -= 1
            if not self._count:
                _prctl(_PR_SET_PTRACER, 0)


_consent = _Consent()


class Loans:
    """Arrays of this process that another one reads. They stay where they are until they are given back.

    Attributes:
      offer: what the other process needs in order to read; fits into JSON.
    """

    def __init__(self) -> None:
        self._proof = np.frombuffer(secrets.token_bytes(_PROOF_BYTES), np.uint8)
        self._lent: dict[int, np.ndarray] = {}
        self._consents = False
        self.offer: dict[str, Any] = {
            "pid": os.getpid(),
            "at": _address(self._proof),
            "proof": self._proof.tobytes().hex(),
        }

    def consent(self, reader: int) -> None:
        """Allows a process, by its id, to read, where the kernel asks for that, and no other one is allowed it by another save."""
        self._consents = self._consents or _consent.give(reader)

    def lend(self, number: int, array: np.ndarray) -> int:
        """Keeps a contiguous array, under a number of its own; returns its address."""
        self._lent[number] = array
        return _address(array)

    def lent(self, number: int) -> np.ndarray:
        """Returns the bytes of an array that is lent, a flat uint8 array."""
        return self._lent[number].reshape(-1).view(np.uint8)

    def take_back(self, numbers: Iterable[int]) -> None:
        """Lets go of arrays that have been read."""
        for number in numbers:
            self._lent.pop(number, None)

    def close(self) -> None:
        """Lets go of all arrays, and takes the consent back. Idempotent."""
        self._lent.clear()
        if self._consents:
            self._consents = False
            _consent.take_back()


class Reader:
    """Reads what another process of this host lends."""

    def __init__(self, offer: Mapping[str, Any]) -> None:
        """Args: the `Loans.offer` of the other process.

        Raises:
          PermissionError: the kernel does not permit it, perhaps without `Loans.consent`.
          OSError: this system cannot do it, or what is there is another process.
        """
        self._pid = int(offer["pid"])
        proof = np.zeros(_PROOF_BYTES, np.uint8)
        if not self.read(int(offer["at"]), proof):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        # In another namespace of processes the number may be that of any process.
        if proof.tobytes() != bytes.fromhex(offer["proof"]):
            raise OSError("The process that is there is not the one that made the offer.")

    def read(self, address: int, target: np.ndarray) -> bool:
        """Fills a contiguous array; returns whether the kernel permits it (which can end: consent may go to a debugger).

        Raises:
          OSError: with errno: the other process has ended, or has nothing there.
        """
        done = 0
        while done < target.nbytes:
            here = _Span(_address(target) + done, target.nbytes - done)
            there = _Span(address + done, target.nbytes - done)
            count = _process_vm_readv()(self._pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
            if count <= 0:
                code = ctypes.get_errno()
                if code == errno.EPERM:
                    return False
                raise OSError(code, os.strerror(code))
            done += count
        return True


class _Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@functools.cache
def _process_vm_readv() -> Callable[..., int]:
    try:
        # A CDLL, whose functions are called without the GIL.
        function = ctypes.CDLL(None, use_errno=True).process_vm_readv
    except (AttributeError, OSError, TypeError) as error:
        raise OSError("This system has no process_vm_readv.") from error
    span = ctypes.POINTER(_Span)
    function.argtypes = [ctypes.c_int, span, ctypes.c_ulong, span, ctypes.c_ulong, ctypes.c_ulong]
    function.restype = ctypes.c_ssize_t
    return function


def _prctl(option: int, argument: int) -> int:
    try:
        function = ctypes.CDLL(None).prctl
    except (AttributeError, OSError, TypeError):
        return -1
    function.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
    done: int = function(option, argument, 0, 0, 0)
    return done
