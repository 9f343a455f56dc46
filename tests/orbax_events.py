"""What Orbax reports of its saves through jax.monitoring. Nothing here imports pytest: it runs in the processes of jobs too."""

import contextlib
from collections.abc import Iterator

import jax

ASYNCHRONOUS = {
    "/jax/checkpoint/write/async/blocking_duration_secs",
    "/jax/checkpoint/write/async/total_duration_secs",
    "/jax/checkpoint/write/async/commit_duration_sec",
    "/jax/checkpoint/write/async/thread_duration_sec",
}
SYNCHRONOUS = {"/jax/orbax/write/blocking_duration_secs", "/jax/orbax/write/total_duration_secs"}
_heard: list[str] = []
_listening = False


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Yields the names of what is reported in the block, as often as it is reported, in a list that grows."""
    global _listening
    if not _listening:
        _listening = True
        jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **more: _heard.append(name))
    _heard.clear()
    yield _heard


def of_saves(names: list[str]) -> dict[str, int]:
    """Returns how often the durations of a save were reported, by their names."""
    known = ASYNCHRONOUS | SYNCHRONOUS
    return {name: names.count(name) for name in sorted(set(names) & known)}
