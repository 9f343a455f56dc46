"""A program of a job that listens to what its saves and restores tell."""

import logging
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxckpt
from jaxckpt import storage


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def save_and_restore(directory: str, io_process: int | None, asynchronous: bool) -> dict[str, Any]:
    """Saves an array of 8 MiB that is divided over all processes, and restores it. Returns what was told."""
    heard: list[tuple[str, float, str]] = []

    def hear(name: str, value: float = 1.0, **labels: str) -> None:
        if name.startswith("/jaxckpt/"):
            heard.append((name, value, labels["mode"]))

    jax.monitoring.register_event_duration_secs_listener(hear)
    jax.monitoring.register_scalar_listener(hear)
    told, logger, orbax = _Lines(), logging.getLogger("jaxckpt"), _Lines()
    logger.addHandler(told)
    logging.getLogger("absl").addHandler(orbax)
    levels = logger.level, logging.getLogger("absl").level
    logger.setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.INFO)
    try:
        sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
        value = jax.make_array_from_callback((2 << 20,), sharding, lambda index: np.ones(2 << 20, np.float32)[index])
        device = None if io_process is None else f"/job:worker/task:{io_process}"
        options = jaxckpt.CheckpointOptions(enable_async=asynchronous, experimental_io_device=device)
        checkpoint = jaxckpt.Checkpoint(w=value)
        path = checkpoint.save(os.path.join(directory, "ckpt"), options)
        checkpoint.sync()
        checkpoint.restore(path, options)
    finally:
        logger.setLevel(levels[0])
        logging.getLogger("absl").setLevel(levels[1])
        logger.removeHandler(told)
        logging.getLogger("absl").removeHandler(orbax)
        jax.monitoring.unregister_event_duration_listener(hear)
        jax.monitoring.unregister_scalar_listener(hear)
    account = storage.read_facts(path).account if os.path.exists(path) else None
    return {
        "events": heard,
        "lines": told.lines,
        "orbax": orbax.lines,
        "account": None if account is None else (account.bytes, account.processes, account.asynchronous),
    }
