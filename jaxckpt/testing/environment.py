"""What a process of a job is given: its environment, and an address for JAX's coordinator."""

import os
import re
import socket
from collections.abc import Mapping

_LOCALHOST = "127.0.0.1"


def environment(processes: int, devices: int, changes: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the environment of a process: ours, JAX on the CPU, few threads, and the caller's changes.

    Args:
      processes: number of processes of the job.
      devices: number of CPU devices of each.
      changes: variables to set; None for one to remove.
    """
    result = dict(os.environ)
    # Another number of devices here is an error of JAX.
    flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", result.get("XLA_FLAGS", "")).strip()
    local = ",".join(filter(None, [result.get("no_proxy") or result.get("NO_PROXY"), _LOCALHOST]))
    result |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": flags,
        "PYTHONUNBUFFERED": "1",  # What a killed process wrote is there.
        "no_proxy": local,  # The coordinator is on this machine.
        "NO_PROXY": local,
    }
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        result.setdefault(name, "1")
    result.setdefault("NPROC", str(max(1, (os.cpu_count() or 1) // processes)))  # XLA's name for its number of threads
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


class Port:
    """A free port of this machine, reserved until the coordinator listens on it.

    It is bound here, so nobody else is given it, but in a way (SO_REUSEPORT) in which a process of the same user can bind it too.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((_LOCALHOST, 0))
        self.address = f"{_LOCALHOST}:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "Port":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
