"""The environment of a process of a job, and the address of JAX's coordinator."""

import os
import re
import socket
from collections.abc import Mapping

_LOCALHOST = "127.0.0.1"


def environment(processes: int, devices: int, changes: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the environment of a process: that of this process, with JAX on the CPU, few threads, and the caller's changes.

    Args:
      processes: number of processes of the job.
      devices: number of CPU devices of each process.
      changes: variables to set, by name; None as a value removes a variable.
    """
    result = dict(os.environ)
    # JAX raises an error if this flag has another number of devices.
    flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", result.get("XLA_FLAGS", "")).strip()
    local = ",".join(filter(None, [result.get("no_proxy") or result.get("NO_PROXY"), _LOCALHOST]))
    result |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": flags,
        # Without buffers, the output of a killed process is complete.
        "PYTHONUNBUFFERED": "1",
        # The coordinator is on this machine, so it must not be reached through a proxy.
        "no_proxy": local,
        "NO_PROXY": local,
    }
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        result.setdefault(name, "1")
    # XLA takes its number of threads from NPROC.
    result.setdefault("NPROC", str(max(1, (os.cpu_count() or 1) // processes)))
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


class Port:
    """A free port of this machine, reserved until the coordinator listens on it.

    It is bound here, so the system does not give it to another program. SO_REUSEPORT lets the coordinator, a process of the same user, bind
    it too.
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
