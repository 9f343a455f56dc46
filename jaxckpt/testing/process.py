"""The program of a process of a job: connects to JAX, runs the functions that the parent names, and reports to the parent."""

import contextlib
import faulthandler
import inspect
import io
import json
import os
import pickle
import queue
import signal as signals
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from jaxckpt.testing import functions, namespaces

_control: "_Control | None" = None


def signal(name: str) -> None:
    """Tells the parent that this process has reached the point `name`. `Job.wait_for` waits for it.

    Args:
      name: name of the point.

    Raises:
      RuntimeError: this process was not started by a `Job`.
    """
    _connected("signal").send(kind="signal", name=name)


def pause(name: str) -> None:
    """Signals like `signal`, then waits until the parent calls `Job.release`. May be called in any thread.

    Args:
      name: name of the point.

    Raises:
      RuntimeError: this process was not started by a `Job`.
    """
    control = _connected("pause")
    control.send(kind="signal", name=name)
    # The parent bounds this wait: it kills this process at its deadline, or when it ends.
    control.gate(name).wait()


def _connected(what: str) -> "_Control":
    if _control is None:
        raise RuntimeError(f"testing.{what}() works only in a function that a jaxckpt.testing.Job runs.")
    return _control


class _Control:
    """The connection to the parent: short messages, a line of JSON each. Large data goes through files."""

    def __init__(self, file: int) -> None:
        os.set_inheritable(file, False)
        self._socket = socket.socket(fileno=file)
        self._sending = threading.Lock()
        self.orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._gates: dict[str, threading.Event] = {}
        threading.Thread(target=self._listen, name="jaxckpt-testing", daemon=True).start()

    def send(self, **message: Any) -> None:
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def gate(self, name: str) -> threading.Event:
        """Returns the event that is set when the parent releases `name`."""
        # This is one step, so that two threads get the same event.
        return self._gates.setdefault(name, threading.Event())

    def _listen(self) -> None:
        for line in self._socket.makefile("rb"):
            message = json.loads(line)
            if message["kind"] == "release":
                self.gate(message["name"]).set()
            else:
                if message["kind"] == "call":
                    # Reset here and not where the function is called, because a release that follows must find the new event.
                    self._gates = {}
                self.orders.put(message)
        # The parent is gone, so this process ends, with all processes that it started.
        os.killpg(0, signals.SIGKILL)


class _Pickler(pickle.Pickler):
    """Pickles JAX arrays as numpy arrays, so that the parent does not need JAX to read them."""

    def reducer_override(self, value: Any) -> Any:
        import jax
        import numpy as np

        return (np.array, (np.asarray(value),)) if isinstance(value, jax.Array) else NotImplemented


def main(settings: dict[str, Any]) -> None:
    """Runs a process of a job until the parent tells it to end.

    Args:
      settings: index and number of processes, coordinator, directories, private disk, timeouts, and the socket to the parent.
    """
    global _control
    index, directory = settings["index"], Path(settings["directory"])
    sys.argv = [""]
    # The file stays open, because a signal may make faulthandler write to it at any time.
    stacks = open(directory / f"stacks-{index}.txt", "w", encoding="utf-8")  # noqa: SIM115
    faulthandler.enable()
    faulthandler.register(signals.SIGUSR1, stacks, all_threads=True)
    if settings["private"] is not None:
        # This comes first, because a process can change its namespaces only while it has a single thread.
        namespaces.see_at(settings["private"], *settings["disk"])
    # The same path may lie on another disk now.
    os.chdir(settings["cwd"])
    _control = _Control(settings["socket"])
    _connect_jax(settings)
    _control.send(kind="ready")
    while (order := _control.orders.get())["kind"] == "call":
        state, outcome = _call(directory / f"call-{order['number']}.pickle")
        (directory / f"result-{index}-{order['number']}.pickle").write_bytes(outcome)
        sys.stdout.flush()
        sys.stderr.flush()
        _control.send(kind="done", state=state)
    if order["fast"]:
        os._exit(0)


def _connect_jax(settings: dict[str, Any]) -> None:
    import jax

    wanted = {
        "coordinator_address": settings["coordinator"],
        "coordinator_bind_address": settings["coordinator"],
        "num_processes": settings["processes"],
        "process_id": settings["index"],
        "cluster_detection_method": "deactivate",
        "initialization_timeout": settings["timeout"],
        "shutdown_timeout_seconds": settings["timeout"],
        "heartbeat_timeout_seconds": settings["heartbeat_timeout"],
    }
    # The environment excludes the coordinator from proxies, so JAX need not warn. Some versions of JAX do not have this option.
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_check_proxy_envs", False)
    known = inspect.signature(jax.distributed.initialize).parameters
    jax.distributed.initialize(**{name: value for name, value in wanted.items() if name in known})
    # The processes exchange their devices now, so that the exchange is not part of the first function.
    jax.devices()


def _call(path: Path) -> tuple[str, bytes]:
    """Runs the function that the file at `path` names. Returns the new state, and the pickled result or error."""
    try:
        target, arguments = pickle.loads(path.read_bytes())
        function = functions.load(target)
        # Unpickled after the module is loaded, because the arguments may be of its classes.
        args, kwargs = pickle.loads(arguments)
        value = function(*args, **kwargs)
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        except Exception as error:
            raise TypeError(
                f"the result of {target.name} cannot be sent to the parent ({error}); return numpy arrays or plain values"
            ) from error
        return "returned", buffer.getvalue()
    except BaseException as error:
        # SystemExit and KeyboardInterrupt are reported to the parent too.
        return "raised", pickle.dumps(
            (type(error).__qualname__, str(error), "".join(traceback.format_exception(error)), _pickled(error))
        )


def _pickled(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error)
        # Many exceptions can be pickled but not unpickled, so this is tried here.
        pickle.loads(data)
    except Exception:
        return None
    return data
