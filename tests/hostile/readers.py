"""Every public call that reads, on one case; and what it may end in."""

import contextlib
import io
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden import make
from hostile import foreign_cases
from hostile.cases import FOREIGN, Case

import jaxckpt
import jaxckpt.cli

# A KeyError says only that a leaf is unknown.
EXPECTED = (jaxckpt.CheckpointError, ValueError, OSError)
_targets: dict[str, dict[str, Any]] = {}


def read_all(case: Case, rng: random.Random) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields the name of each call, and what makes it. Some take turns: they share what they read with the others."""
    path = case.path / "state" if (case.path / "state").is_dir() and rng.random() < 0.1 else case.path
    reader: list[jaxckpt.Reader] = []
    yield "load_checkpoint", lambda: reader.append(jaxckpt.load_checkpoint(path))
    if reader:
        names = reader[0].keys()
        for name in rng.sample(names, min(len(names), 2)):
            yield f"metadata({name[:20]!r})", lambda name=name: reader[0].metadata(name)
            yield f"shape({name[:20]!r})", lambda name=name: (reader[0].shape(name), reader[0].dtype(name))
            yield f"get_tensor({name[:20]!r})", lambda name=name: reader[0].get_tensor(name)
        yield "tree", reader[0].tree
    yield "verify", lambda: str(jaxckpt.verify(path))
    yield "restore", lambda: _restore(case, path, rng.choice(["restore", "read"]))
    turns: list[tuple[str, Callable[[], Any]]] = [
        ("list_variables", lambda: jaxckpt.list_variables(path)),
        ("latest_checkpoint", lambda: jaxckpt.latest_checkpoint(case.directory)),
        ("get_checkpoint_state", lambda: jaxckpt.get_checkpoint_state(case.directory)),
        ("manager", lambda: _manager(case, skip_corrupt=True)),
        ("manager", lambda: _manager(case, skip_corrupt=False)),
        ("inspect", lambda: _cli("inspect", str(path))),
        ("verify on the command line", lambda: _cli("verify", str(path))),
        ("list", lambda: _cli("list", str(case.directory))),
        ("diff", lambda: _cli("diff", str(case.directory / "ckpt-1"), str(path))),
    ]
    yield from rng.sample(turns, 2)


def targets(case: Case) -> dict[str, Any]:
    """Values of the kinds, shapes and dtypes that were saved."""
    if case.values not in _targets:
        values = foreign_cases.targets() if case.values == FOREIGN else make.VALUES[case.values]()
        _targets[case.values] = jax.tree.map(_blank, values)
    return _targets[case.values]


def _blank(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(jnp.zeros_like(leaf), leaf.sharding)
    if isinstance(leaf, np.ndarray):
        return np.zeros_like(leaf)
    return leaf


def _restore(case: Case, path: Path, how: str) -> None:
    checkpoint = jaxckpt.Checkpoint(**targets(case))
    getattr(checkpoint, how)(path)


def _manager(case: Case, *, skip_corrupt: bool) -> None:
    checkpoint = jaxckpt.Checkpoint(**targets(case))
    manager = jaxckpt.CheckpointManager(checkpoint, case.directory, max_to_keep=5)
    manager.checkpoints  # noqa: B018  A property that reads.
    manager.restore_or_initialize(skip_corrupt=skip_corrupt)


def _cli(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = jaxckpt.cli.main(arguments)
    if code not in (0, 1) or "Traceback" in out.getvalue():
        raise AssertionError(f"exit code {code}: {out.getvalue()[-300:]}")


def quiet() -> None:
    """Says nothing about what is expected."""
    logging.getLogger("jaxckpt").setLevel(logging.CRITICAL)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ["COLUMNS"] = "100"
