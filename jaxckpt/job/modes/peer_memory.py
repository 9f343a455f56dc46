"""Reads the memory of another process of this host: one copy moves the bytes, and the other process has no work.

Linux allows it to processes of the same user (process_vm_readv). With some settings (Yama's ptrace_scope 1) it needs the consent of the
process that is read, and that process, the lender, gives it. If the memory cannot be read (on another kind of system, or in another
container), the bytes go through the connection instead.

Memory is only read, never written. If the lender has given up meanwhile and reuses the memory, the reader gets wrong bytes, but the call
has failed then, and they are not used. A write at that moment would destroy data of the other process.
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
    """The consent of this process to be read by another one. The kernel keeps one reader; several saves may need the same one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader = self._count = 0

    def give(self, reader: int) -> bool:
        """Allows a process to read this one.

        Args:
          reader: id of the process.

        Returns:
          Whether it is allowed now. It is not if another process is allowed at the moment, or if the kernel refuses.
        """
        with self._lock:
            if self._count and self._reader != reader:
                return False
            if _prctl(_PR_SET_PTRACER, reader) != 0:
                return False
            self._reader = reader
            self._count += 1
            return True

    def take_back(self) -> None:
        """Takes back the consent of one successful `give`."""
        with self._lock:
            self._count -= 1
            if not self._count:
                _prctl(_PR_SET_PTRACER, 0)


_consent = _Consent()


class Loans:
    """Arrays that this process lends: another process reads them. They stay at their addresses until they are taken back.

    Attributes:
      offer: the values that the other process needs to read; they fit into JSON.
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
        """Allows a process to read the arrays, if the kernel needs consent, and if another save has not allowed another process.

        Args:
          reader: id of the process.
        """
        self._consents = self._consents or _consent.give(reader)

    def lend(self, number: int, array: np.ndarray) -> int:
        """Keeps an array, so that it can be read. Returns its address.

        Args:
          number: a new number, by which the array can be referred to.
          array: a contiguous array.
        """
        self._lent[number] = array
        return _address(array)

    def lent(self, number: int) -> np.ndarray:
        """Returns the bytes of the array that is lent under a number, as a flat array of uint8."""
        return self._lent[number].reshape(-1).view(np.uint8)

    def take_back(self, numbers: Iterable[int]) -> None:
        """Frees the arrays with these numbers, which have been read."""
        for number in numbers:
            self._lent.pop(number, None)

    def close(self) -> None:
        """Frees all arrays, and takes the consent back. Idempotent."""
        self._lent.clear()
        if self._consents:
            self._consents = False
            _consent.take_back()


class Reader:
    """Reads arrays that another process of this host lends."""

    def __init__(self, offer: Mapping[str, Any]) -> None:
        """Checks that the memory of the other process can be read.

        Args:
          offer: the `Loans.offer` of the other process.

        Raises:
          PermissionError: the kernel does not allow it. `Loans.consent` in the other process may help.
          OSError: this system cannot read the memory of other processes, or the process with this id is another one.
        """
        self._pid = int(offer["pid"])
        proof = np.zeros(_PROOF_BYTES, np.uint8)
        if not self.read(int(offer["at"]), proof):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        # In another PID namespace this process id may belong to any process.
        if proof.tobytes() != bytes.fromhex(offer["proof"]):
            raise OSError("The process with this id is not the one that made the offer.")

    def read(self, address: int, target: np.ndarray) -> bool:
        """Fills an array with bytes of the other process.

        Args:
          address: address of the bytes in the other process.
          target: a contiguous array.

        Returns:
          Whether the kernel allows it. It may stop allowing it: a debugger may take over the consent.

        Raises:
          OSError: the other process has ended, or does not have memory at the address; `errno` is set.
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
        # A CDLL, because its functions are called without the GIL.
        function = ctypes.CDLL(None, use_errno=True).process_vm_readv
    except (AttributeError, OSError, TypeError) as error:
        raise OSError("This system does not have process_vm_readv.") from error
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
