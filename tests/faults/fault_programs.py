"""What the processes of the jobs of this directory run. No pytest here: it would be imported in every process."""

import contextlib
import gc
import os
import signal
import socket
import threading
import time
import traceback
import warnings
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxckpt
from jaxckpt import testing
from jaxckpt.job.agree import leader, meeting
from jaxckpt.job.modes import fetcher, local_answers, peer_answers, shared, shared_reads
from jaxckpt.job.protocol import handshake, link, meeting_messages, messages
from jaxckpt.job.session import center, peer
from jaxckpt.storage.arrays import own_writer, writer
from jaxckpt.storage.commit import moves
from jaxckpt.storage.ocdbt import data_file
from jaxckpt.storage.stores import local

NAMES = ("a", "b", "c")
# More than what travels in batches.
COLUMNS = 17_000
# The timeout of calls that end by it. Processes that do call are that punctual, also on a busy machine.
SHORT_SECS = 5.0


class Outcome(dict[str, Any]):
    """How a call ended: `error` is None or the names of the classes of what it raised; text, processes, errno, value, secs."""


# -- faults -----------------------------------------------------------------------------------------------------------------------

_PLACES = {
    "piece": (peer_answers.PeerAnswers, ("_get", "_fill")),
    "vote": (peer.Peer, "_answer"),
    "fetch": (fetcher.Fetcher, ("_ask", "stream")),
    "commit": (moves, "publish"),
    "sync": (local, "sync_tree"),
    "look": (shared.Writer, "_look"),
    "part": (shared.Writer, "_write"),
    "mark": (shared, "_require_shared"),
    "data": (data_file.DataFile, "append"),
    "merge": (own_writer, "_merged"),
    "arrays": (writer, ("write_arrays", "write_with_parts")),
    "outcome": (center.Center, "tell"),
    "request": (peer.Peer, "_next_answer"),
    "provide": (local_answers.LocalAnswers, ("put", "stream")),
    "shared tile": (shared_reads.SharedReads, "_load"),
    "announced": (shared_reads.SharedReads, "announce"),
    "verdict": (leader.Leader, "_verdict"),
    "agreed": (link.Link, "send"),
}

_MESSAGES = {"vote": messages.Confirm, "agreed": meeting_messages.Agreed}


@contextlib.contextmanager
def _fault(place: str | None, kind: str, nth: int) -> Any:
    """Does something at the nth passage of a place: pause (for the test to kill or stall), interrupt, or raise."""
    if place is None:
        yield
        return
    owner, names = _PLACES[place]
    kind_of_message = _MESSAGES.get(place)
    passed = 0

    def passing(original: Any) -> Any:
        def instead(*args: Any, **kwargs: Any) -> Any:
            nonlocal passed
            if kind_of_message is None or any(isinstance(arg, kind_of_message) for arg in args):
                passed += 1
                if passed == nth:
                    _happen(place, kind)
            return original(*args, **kwargs)

        return instead

    with contextlib.ExitStack() as patches:
        for name in [names] if isinstance(names, str) else names:
            patches.enter_context(mock.patch.object(owner, name, passing(getattr(owner, name))))
        yield


def _happen(place: str, kind: str) -> None:
    if kind == "pause":
        testing.pause(place)
    elif kind == "interrupt":
        raise KeyboardInterrupt
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise PermissionError(13, "on purpose", "/somewhere")


# -- calls ------------------------------------------------------------------------------------------------------------------------


def _array(value: float, axis: str | None = "x") -> jax.Array:
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    shape = (jax.device_count(), COLUMNS)
    return jax.make_array_from_callback(shape, sharding, lambda index: np.full(shape, value, np.float32)[index])


def tree(version: float) -> dict[str, Any]:
    """A tree whose every leaf tells the version."""
    return {**{name: _array(version) for name in NAMES}, "step": int(version), "host": np.full(5, version)}


def options(io: int | None, secs: float, asynchronous: bool = False, **more: Any) -> jaxckpt.CheckpointOptions:
    """Options of the calls here."""
    return jaxckpt.CheckpointOptions(
        experimental_io_device=io,
        enable_async=asynchronous,
        orbax=jaxckpt.OrbaxSettings(timeout_secs=secs),
        **more,
    )


def outcome(work: Any) -> Outcome:
    """Calls `work` and returns how it ended."""
    began = time.monotonic()
    try:
        value = work()
    except BaseException as error:
        return Outcome(
            error=[kind.__name__ for kind in type(error).__mro__],
            text=str(error),
            processes=tuple(getattr(error, "processes", ())),
            errno=getattr(error, "errno", None),
            secs=time.monotonic() - began,
            value=None,
        )
    return Outcome(error=None, text="", processes=(), errno=None, value=value, secs=time.monotonic() - began)


def save(
    prefix: str,
    io: int | None,
    version: float,
    *,
    secs: float = SHORT_SECS,
    asynchronous: bool = False,
    absent: int | None = None,
    late: tuple[int, float | None] | None = None,
    fault: tuple[int, str, str, int] | None = None,
    bad: tuple[int, str] | None = None,
) -> Outcome | None:
    """Saves a version; one process may be absent, late (None: until "late" is released), meet a fault, or have a bad leaf."""
    warnings.simplefilter("error")
    me = jax.process_index()
    if me == absent:
        return None
    if late is not None and me == late[0]:
        _come_late(late[1])
    values = tree(version)
    if bad is not None and me == bad[0]:
        values["a"] = {"leaf": object(), "object": _Unwilling()}[bad[1]]
    elif bad is not None and bad[1] == "object":
        values["a"] = _Willing()
    checkpoint = jaxckpt.Checkpoint(**values)
    place, kind, nth = fault[1:] if fault is not None and me == fault[0] else (None, "", 0)

    def work() -> str:
        path = checkpoint.save(prefix, options(io, secs, asynchronous))
        checkpoint.sync()
        return path

    with _fault(place, kind, nth):
        found = outcome(work)
    testing.signal("done")
    return found


def _come_late(secs: float | None) -> None:
    if secs is None:
        testing.pause("late")
    else:
        time.sleep(secs)


class _Willing:
    def serialize(self) -> bytes:
        return b"state"

    def deserialize(self, state: bytes) -> None:
        pass


class _Unwilling(_Willing):
    def serialize(self) -> bytes:
        raise LookupError("does not serialize today")


def restore(
    prefix: str,
    io: int | None,
    *,
    secs: float = SHORT_SECS,
    absent: int | None = None,
    late: tuple[int, float | None] | None = None,
    fault: tuple[int, str, str, int] | None = None,
    once: bool = False,
) -> Outcome | None:
    """Restores the latest checkpoint; the value is its path and version. Raises if it is torn, or changed by a failed restore."""
    warnings.simplefilter("error")
    me = jax.process_index()
    if me == absent:
        return None
    if late is not None and me == late[0]:
        _come_late(late[1])
    values = tree(-1)
    given = options(io, secs)
    if once:
        # Every process wants everything.
        values |= {name: _array(-1, None) for name in NAMES}
        given.orbax = jaxckpt.OrbaxSettings(timeout_secs=secs, read_once_per_job=True)
    checkpoint = jaxckpt.Checkpoint(**values)
    place, kind, nth = fault[1:] if fault is not None and me == fault[0] else (None, "", 0)

    def work() -> tuple[str, float]:
        latest = jaxckpt.latest_checkpoint(os.path.dirname(prefix), options(io, secs))
        assert latest is not None
        with _fault(place, kind, nth):
            checkpoint.restore(latest, given).assert_consumed()
        return latest, float(checkpoint.step)

    found = outcome(work)
    testing.signal("done")
    version = -1.0 if found["error"] else found["value"][1]
    for name in NAMES:
        for shard in getattr(checkpoint, name).addressable_shards:
            assert (np.asarray(shard.data) == version).all(), (name, version, found)
    assert checkpoint.step == version
    assert (checkpoint.host == version).all()
    return found


def files(directory: str) -> list[str]:
    """Names in a directory, as this process sees it."""
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


# -- strangers --------------------------------------------------------------------------------------------------------------------


def _listening() -> list[tuple[str, int]]:
    """Addresses that this process listens on."""
    inodes = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{table}", encoding="ascii") as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    raw, port = fields[1].split(":")
                    words = bytes.fromhex(raw)
                    packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                    found.append((socket.inet_ntop(family, packed), int(port, 16)))
    return found


def listening_in_a_meeting(prefix: str, io: int) -> list[tuple[str, int]]:
    """Saves, and returns what this process listens on at that moment, apart from what it listens on anyway."""
    before = set(_listening())
    found: set[tuple[str, int]] = set()
    original = meeting.Listener.wait

    def wait(self: Any, left: Any) -> Any:
        found.update(set(_listening()) - before)
        return original(self, left)

    meeting.Listener.wait = wait  # type: ignore[method-assign]
    try:
        jaxckpt.Checkpoint(**tree(1)).save(prefix, options(io, 20))
    finally:
        meeting.Listener.wait = original  # type: ignore[method-assign]
    assert set(_listening()) == before
    return sorted(found)


def harassed(prefix: str, io: int, version: float, bombs: list[bytes], silent: int) -> tuple[Outcome, list[bytes], str]:
    """Saves while strangers bother every listener; returns also what they were told, and what threads printed."""
    heard: list[bytes] = []
    strangers: list[socket.socket] = []
    printed: list[str] = []
    original = meeting.Listener.wait
    hook = threading.excepthook
    threading.excepthook = lambda args: printed.append(f"{args.exc_type.__name__}: {args.exc_value}")

    def bother(address: tuple[str, int], bomb: bytes) -> None:
        with contextlib.suppress(OSError):
            stranger = socket.create_connection(address, timeout=5)
            strangers.append(stranger)
            if bomb:
                stranger.sendall(bomb)
                with contextlib.suppress(OSError):
                    stranger.settimeout(0.2)
                    heard.append(stranger.recv(1 << 16) + stranger.recv(1 << 16))

    def wait(self: Any, left: Any) -> Any:
        address = (self.address.host, self.address.port)
        for bomb in [b""] * silent + bombs:
            bother(address, bomb)
        return original(self, left)

    meeting.Listener.wait = wait  # type: ignore[method-assign]
    try:
        # A call that waited for a stranger's handshake would not be done in time.
        with mock.patch.object(handshake, "_HANDSHAKE_SECS", 1000.0):
            found = outcome(lambda: jaxckpt.Checkpoint(**tree(version)).save(prefix, options(io, 40)))
    finally:
        meeting.Listener.wait = original  # type: ignore[method-assign]
        for stranger in strangers:
            stranger.close()
    time.sleep(0.2)
    threading.excepthook = hook
    return found, heard, "; ".join(printed)


# -- many calls -------------------------------------------------------------------------------------------------------------------


def _resources() -> tuple[int, int]:
    """Descriptors and threads, as soon as they have not changed for half a second: threads end a moment after what needed them."""
    end = time.monotonic() + 20
    while True:
        # An interrupt may leave references in a circle.
        gc.collect()
        before = _counted()
        time.sleep(0.5)
        if _counted() == before or time.monotonic() > end:
            return before


def _counted() -> tuple[int, int]:
    # Without those that an interrupt kept from starting, which Python lists all the same.
    return len(os.listdir("/proc/self/fd")), sum(each.is_alive() for each in threading.enumerate())


def _more(old: tuple[int, int], allowed: int) -> tuple[int, int] | None:
    """Returns descriptors and threads if they stay more than they were; None if they do not."""
    end = time.monotonic() + 20
    while True:
        now = _resources()
        if all(new <= before + allowed for new, before in zip(now, old, strict=True)):
            return None
        if time.monotonic() > end:
            return now


def many(prefix: str, io: int | None, times: int) -> tuple[tuple[int, int], tuple[int, int] | None, float]:
    """Saves often.

    Returns:
      Descriptors and threads at the beginning; at the end, if they are more; and the seconds of a joint call.
    """
    checkpoint = jaxckpt.Checkpoint(w=_array(1), step=0)
    for turn in range(times):
        checkpoint.write(prefix, options(io, 20, turn % 4 == 3))
        if turn == 9:
            checkpoint.sync()
            jax.block_until_ready(_array(1))
            before = _resources()
    checkpoint.sync()
    jax.block_until_ready(_array(1))
    more = _more(before, 2)
    began = time.monotonic()
    for _ in range(50):
        jaxckpt.latest_checkpoint(os.path.dirname(prefix), options(io, 20))
    return before, more, (time.monotonic() - began) / 50


def keys_left() -> list[str]:
    """Keys of this package in JAX's key-value store."""
    from jax._src import distributed

    return [key for key, _ in distributed.global_state.client.key_value_dir_get("jaxckpt")]


def two_at_once(directory: str, io: int) -> list[float]:
    """Two objects save asynchronously at the same time, and a third restores meanwhile; calls also from another thread."""
    first, second = (jaxckpt.Checkpoint(**tree(version)) for version in (1, 2))
    settings = options(io, 20, True)
    for _ in range(5):
        one = first.save(f"{directory}/one", settings)
        two = second.save(f"{directory}/two", settings)
    first.sync()
    three = jaxckpt.Checkpoint(**tree(-1))
    second.save(f"{directory}/two", settings)
    three.restore(one, settings)
    versions = [float(three.step)]
    three.restore(two, settings)
    versions.append(float(three.step))
    second.sync()

    def elsewhere() -> None:
        path = first.save(f"{directory}/one", settings)
        first.sync()
        three.restore(path, settings)
        versions.append(float(three.step))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    return versions


def calls_in_callback(prefix: str, io: int, asynchronous: bool) -> Outcome:
    """A write callback makes calls that need every process."""
    directory = os.path.dirname(prefix)
    other = jaxckpt.Checkpoint(x=1)
    found: list[Outcome] = []

    def callback() -> None:
        found.append(outcome(lambda: other.save(f"{directory}/other", options(io, 20))))
        found.append(outcome(lambda: jaxckpt.latest_checkpoint(directory, options(io, 20))))

    settings = options(io, 20, asynchronous, experimental_write_callbacks=[callback])
    checkpoint = jaxckpt.Checkpoint(**tree(1))

    def work() -> list[Outcome]:
        checkpoint.save(prefix, settings)
        checkpoint.sync()
        return found

    return outcome(work)


def peak(prefix: str, io: int, megabytes: int, asynchronous: bool) -> tuple[float, float]:
    """Saves one large state; returns by how many MB the memory of this process grew at most, and its own part."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    shape = (jax.device_count(), megabytes * (1 << 18) // jax.device_count() // 4)
    values = {
        f"w{number}": jax.make_array_from_callback(shape, sharding, lambda index: np.ones(shape, np.float32)[index])
        for number in range(4)
    }
    own = sum(shard.data.nbytes for value in values.values() for shard in value.addressable_shards)
    checkpoint = jaxckpt.Checkpoint(**values)
    # The first write makes what is made once, which is not counted.
    checkpoint.write(prefix, options(io, 60))
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = _status("VmRSS")
    checkpoint.write(prefix, options(io, 60, asynchronous))
    checkpoint.sync()
    return _status("VmHWM") - before, own / 2**20


def _status(name: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


# -- interrupts at any moment -----------------------------------------------------------------------------------------------------


def interrupted_at_random(prefix: str, io: int | None, times: int, seed: int) -> list[str]:
    """Ctrl-C in one process at a random moment of a call, again and again; returns what was not as it has to be."""
    from jax._src import distributed

    wait_at_barrier = distributed.global_state.client.wait_at_barrier
    random = np.random.default_rng(seed)
    me = jax.process_index()
    settings = options(io, 20)
    checkpoint, other = jaxckpt.Checkpoint(**tree(0)), jaxckpt.Checkpoint(**tree(-1))
    checkpoint.write(prefix, settings)
    problems: list[str] = []
    armed = threading.Event()

    # One interrupt, and only inside the call.
    def interrupt(*_: object) -> None:
        if armed.is_set():
            armed.clear()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    seen = 0.0
    resources = _resources()
    for turn in range(1, times + 1):
        who, delay = int(random.integers(jax.process_count())), float(random.uniform(0, 0.04))
        restoring = turn % 3 == 0
        for name, value in tree(turn).items():
            setattr(checkpoint, name, value)
        wait_at_barrier(f"before{seed}-{turn}", 60_000)
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        error: BaseException | None = None
        began = time.monotonic()
        if me == who:
            timer.start()
        try:
            try:
                # Armed here and not before: what starts the timer is not a part of the call.
                armed.set()
                if restoring:
                    other.restore(prefix, settings)
                else:
                    checkpoint.write(prefix, settings)
            finally:
                armed.clear()
        except KeyboardInterrupt as raised:
            error = raised
        except Exception as raised:
            error = raised
            # Interrupted between telling one process and telling the next, process 0 is named together with the latter.
            if who not in getattr(raised, "processes", ()):
                text = "".join(traceback.format_exception(raised))
                problems.append(f"{turn}: {who} was interrupted after {delay:.3f} s, and {me} raised {text}")
        secs = time.monotonic() - began
        if me == who:
            timer.join()
        # Ten seconds if it happens between joining and connecting to an IO process that is not process 0; else at once.
        if secs > 15:
            problems.append(f"{turn}: {who} was interrupted after {delay:.3f} s, and {secs:.1f} s until {error!r}")
        wait_at_barrier(f"after{seed}-{turn}", 60_000)
        other.restore(prefix, settings).assert_consumed()
        versions = {
            float(np.asarray(shard.data).ravel()[0])
            for name in NAMES
            for shard in getattr(other, name).addressable_shards
        }
        versions.add(float(other.step))
        if len(versions) != 1 or not seen <= min(versions) <= turn:
            problems.append(f"{turn}: restored {versions} after {seen}")
        if error is None and not restoring and versions != {float(turn)}:
            problems.append(f"{turn}: was saved, and {versions} were restored")
        seen = max(versions)
    more = _more(resources, 2)
    if more is not None:
        problems.append(f"descriptors and threads were {resources}, are {more}")
    return problems
