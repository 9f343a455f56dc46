"""The beginning of every call that the processes of a job make together: all are there, and all mean the same.

Process 0 collects what each process is about to do and compares. Nothing has been written or changed by then. It is always process 0,
also where another one does the file access: so processes that disagree about *that* find out at once.
"""

import contextlib
import dataclasses
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxckpt.errors import ProcessError
from jaxckpt.multihost import failures, rendezvous
from jaxckpt.multihost.rendezvous import Address, Listener
from jaxckpt.multihost.session import Center, Peer, Session, patience
from jaxckpt.multihost.wire import Header, Link, WireError, close_gently

_KEY = "jaxckpt/meeting"
_LEADER = 0
_SLICE_SECS = 0.5
_INTERRUPTED_SECS = 5.0
_LINGER_SECS = 1.0
_turns = threading.Lock()  # One meeting at a time: calls of several threads must not be taken for one another.


_here = threading.local()


class Alone:
    """Marks what runs on one process only, where a call that needs all processes would wait in vain.

    Not a generator with contextlib.contextmanager: that sets attributes of exceptions, which some refuse.
    """

    def __enter__(self) -> None:
        _here.alone = True

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        _here.alone = False


@dataclass(frozen=True)
class Call:
    """What a process is about to do. The same on every process, or none of them does it.

    Attributes:
      action: the method, such as "save".
      subject: what it is called with, as the caller wrote it: a path.
      center: index of the process that does the file access.
      timeout: bound in seconds for every wait.
      details: whatever else must agree, by the name that a message should use.
    """

    action: str
    subject: str
    center: int
    timeout: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action}({self.subject!r})"


@dataclass(frozen=True)
class Contribution:
    """What a process brings to a meeting besides the call itself.

    Attributes:
      digest: of the tree: names, kinds, shapes, dtypes and shardings.
      leaves: name and description of every leaf, asked for only where digests differ.
      host_digest: of the contents of host leaves.
      host_contents: name and digest of every host leaf, asked for only where they differ.
      facts: what the center tells everyone; of no meaning on the others.
    """

    digest: str = ""
    leaves: Callable[[], Sequence[tuple[str, str]]] = tuple
    host_digest: str = ""
    host_contents: Callable[[], Sequence[tuple[str, str]]] = tuple
    facts: Mapping[str, Any] = field(default_factory=dict)


def several() -> bool:
    """Whether this job has several processes."""
    return int(jax.process_count()) > 1


def meet(call: Call, prepare: Callable[[], Contribution]) -> Session:
    """Waits for the other processes of the job and makes sure that all mean the same.

    Args:
      call: what this process is about to do.
      prepare: what it does before; it runs first, and what it raises is told to the others, and raised.

    Returns:
      The session of the call. The caller closes it.

    Raises:
      ProcessError: a process did not come in time, failed, or means something else; the same on every process, of the kind of the
        error of the process that failed.
      BaseException: what `prepare` raised.
    """
    if not several():
        return Session(jax.process_index(), prepare().facts)
    if getattr(_here, "alone", False):
        raise RuntimeError(
            f"{call} was called from a write callback. Callbacks run on process {jax.process_index()} only, and this call has to be made "
            "by every process of the job. Make it after the save."
        )
    try:
        contribution = prepare()
    except BaseException as error:
        if not isinstance(error, Exception):  # Whoever presses Ctrl-C does not want to wait.
            call = dataclasses.replace(call, timeout=min(call.timeout, _INTERRUPTED_SECS))
        with contextlib.suppress(Exception):  # The others will have to find out by themselves.
            _meet(call, Contribution(), error)
        raise
    return _meet(call, contribution, None)


def _meet(call: Call, contribution: Contribution, error: BaseException | None) -> Session:
    end = time.monotonic() + call.timeout
    if not _turns.acquire(timeout=call.timeout):
        raise TimeoutError(
            f"{call}: another call of this process still waits for other processes after {call.timeout:g} s (OrbaxSettings.timeout_secs)."
        )
    try:
        return _Meeting(call, contribution, error, end).hold()
    finally:
        _turns.release()


class _Meeting:
    def __init__(self, call: Call, contribution: Contribution, error: BaseException | None, end: float) -> None:
        from jaxckpt.storage import private

        self._call = call
        self._mine = contribution
        self._me = jax.process_index()
        self._others = set(range(jax.process_count())) - {self._me}
        self._failure = None if error is None else failures.describe(error, self._me)
        self._error = error
        self._end = end
        found = private.coordination()
        if found is None:
            raise ProcessError(
                f"{call}: this job has {jax.process_count()} processes, but JAX's coordination service, through which jaxckpt finds them, "
                "is not running. Call jax.distributed.initialize() at the start of the program.",
                self._others,
            )
        self._store, self._coordinator = found

    def hold(self) -> Session:
        listener: Listener | None = None
        try:
            if self._me in (_LEADER, self._call.center):
                listener = Listener(rendezvous.interface_towards(self._coordinator), self._others)
            if self._me == _LEADER:
                assert listener is not None
                return self._lead(listener)
            return self._follow(listener)
        finally:
            if listener is not None:
                listener.close()

    # -- process 0 ----------------------------------------------------------------------------------------------------------------

    def _lead(self, listener: Listener) -> Session:
        links: dict[int, Link] = {}
        verdict: Header | None = None
        kept = False
        try:
            try:
                self._store.key_value_set_bytes(_KEY, rendezvous.to_bytes(listener.address), True)
                links, missing = listener.wait(self._end)
            finally:
                # Before anyone is told anything: whoever begins the next call must not find the address of this one.
                self._store.key_value_delete(_KEY)
                listener.close()
            cards = self._read_cards(links)
            verdict = self._verdict(cards, links, missing)
            self._tell(links, verdict)
            if verdict["t"] == "failed":
                self._raise(verdict["failure"])
            _warn(verdict["warnings"])
            if self._call.center == _LEADER:
                session = Center(self._me, links, verdict["facts"], self._call.timeout, str(self._call))
                kept = True
                return session
        except BaseException as error:
            if verdict is None:  # The others would find out by themselves, but not why.
                self._tell(links, {"t": "failed", "failure": failures.describe(error, self._me)})
            raise
        finally:
            if not kept:
                close_gently(list(links.values()), _LINGER_SECS)
        return self._go_to_center(verdict)

    def _tell(self, links: Mapping[int, Link], header: Header) -> None:
        for link in links.values():
            with contextlib.suppress(OSError):
                link.send(header, timeout=min(self._call.timeout, _LINGER_SECS))

    def _read_cards(self, links: Mapping[int, Link]) -> dict[int, Header]:
        """Reads what each process said it is about to do."""
        cards: dict[int, Header] = {}
        for process, link in links.items():
            try:
                cards[process] = link.receive(self._left(), max_payload=0).header
            except TimeoutError:
                cards[process] = self._lost(process, f"connected, and then did not say what it wants, in {self._call}")
            except OSError as error:
                cards[process] = self._lost(process, f"ended, or closed the connection, as {self._call} began: {error}")
        cards[self._me] = self._card(None)
        return cards

    def _lost(self, process: int, how: str) -> Header:
        return {"failure": failures.describe(ProcessError(f"Process {process} {how}.", (process,)), self._me)}

    def _verdict(self, cards: Mapping[int, Header], links: Mapping[int, Link], missing: set[int]) -> Header:
        failed = [cards[process]["failure"] for process in sorted(cards) if cards[process].get("failure")]
        # A process that is missing where another has failed may be missing because of that.
        if failed:
            return {"t": "failed", "failure": failed[0]}
        if missing:
            return self._refusal(
                f"{_named(missing)} did not join {self._call} within {self._call.timeout:g} s (OrbaxSettings.timeout_secs). Every process "
                "of the job has to make the same calls in the same order.",
                missing,
            )
        try:
            self._compare_calls(cards)
            self._compare_trees(cards, links)
            warned = self._compare_host_leaves(cards, links)
        except ProcessError as error:
            return {"t": "failed", "failure": failures.describe(error, self._me)}
        center = cards[self._call.center]
        return {"t": "agreed", "facts": center["facts"], "address": center["address"], "warnings": warned}

    def _refusal(self, text: str, processes: Any) -> Header:
        return {"t": "failed", "failure": failures.describe(ProcessError(text, processes), self._me)}

    def _compare_calls(self, cards: Mapping[int, Header]) -> None:
        mine = cards[self._me]["call"]
        different = {process: card["call"] for process, card in cards.items() if card["call"] != mine}
        if not different:
            return
        process = min(different)
        theirs = different[process]
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if "call" in names:
            found = f"process {self._me} calls {mine['call']}, process {process} calls {theirs['call']}"
        else:
            found = "; ".join(
                f"{name} is {mine.get(name)} on process {self._me} and {theirs.get(name)} on process {process}"
                for name in names
            )
        raise ProcessError(
            f"{self._call}: the processes disagree: {found}. Every process has to make the same call with the same options.",
            {self._me, *different},
        )

    def _compare_trees(self, cards: Mapping[int, Header], links: Mapping[int, Link]) -> None:
        mine = cards[self._me]["digest"]
        different = sorted(process for process, card in cards.items() if card["digest"] != mine)
        if not different:
            return
        process = different[0]
        theirs = self._ask(links[process], "leaves")
        found = _first_difference(self._mine.leaves(), theirs, self._me, process)
        raise ProcessError(
            f"{self._call}: the trees differ: {found}. Every process has to pass the same leaves, with the same shapes, dtypes and "
            "shardings.",
            {self._me, *different},
        )

    def _compare_host_leaves(self, cards: Mapping[int, Header], links: Mapping[int, Link]) -> list[str]:
        mine = cards[self._me]["hosts"]
        different = sorted(process for process, card in cards.items() if card["hosts"] != mine)
        leaves: dict[str, list[int]] = {}
        for process in different[:8]:  # Enough to act upon; a thousand processes would all say the same.
            for (name, here), (_, there) in zip(
                self._mine.host_contents(), self._ask(links[process], "hosts"), strict=False
            ):
                if here != there:
                    leaves.setdefault(name, []).append(process)
        return [
            f"{self._call}: {name} has another value on {_named(processes).lower()} than on process {self._me}, whose value is "
            "stored: values in host memory (numpy arrays, Python scalars, strings, arrays of local devices) belong to no process."
            for name, processes in leaves.items()
        ]

    def _ask(self, link: Link, what: str) -> list[tuple[str, str]]:
        try:
            link.send({"t": what}, timeout=self._call.timeout)
            found = link.receive(self._call.timeout, max_payload=0).header["list"]
        except OSError as error:
            raise ProcessError(
                f"Process {link.process} ended, or did not answer within {self._call.timeout:g} s (OrbaxSettings.timeout_secs), as "
                f"{self._call} began: {error}.",
                (link.process,),
            ) from error
        return [(str(name), str(text)) for name, text in found]

    # -- the others ---------------------------------------------------------------------------------------------------------------

    def _follow(self, listener: Listener | None) -> Session:
        while True:
            link = self._reach_leader()
            kept = False
            try:
                header = self._hear_verdict(link, listener)
                if header is None:
                    time.sleep(0.01)
                    continue
                if header["t"] == "failed":
                    self._raise(header["failure"])
                _warn(header["warnings"])
                if self._call.center == _LEADER:
                    kept = True
                    return Peer(self._me, link, header["facts"], self._call.timeout, str(self._call))
            finally:
                if not kept:
                    link.close()
            # All are there, at this moment; what follows may take as long again, but no longer.
            self._end = time.monotonic() + self._call.timeout
            return self._go_to_center(header) if listener is None else self._await_peers(listener, header)

    def _await_peers(self, listener: Listener, verdict: Header) -> Session:
        """Waits, as the center that is not process 0, for all others."""
        links, missing = listener.wait(self._end)
        listener.close()
        try:
            if missing:
                raise ProcessError(
                    f"{_named(missing)} did not connect to process {self._me}, which does the file access of {self._call}, within "
                    f"{self._call.timeout:g} s (OrbaxSettings.timeout_secs).",
                    missing,
                )
            return Center(self._me, links, verdict["facts"], self._call.timeout, str(self._call))
        except BaseException as error:
            self._tell(links, {"t": "failed", "failure": failures.describe(error, self._me)})
            close_gently(list(links.values()), _LINGER_SECS)
            raise

    def _hear_verdict(self, link: Link, listener: Listener | None) -> Header | None:
        """Returns what process 0 says of the call, or None if it hung up: the call that it was in ended without this process."""
        asked = False
        # It may have come later than this process, and waits for others. It names those who are missing, and must be given the time to.
        longest = self._call.timeout + patience(self._call.timeout)
        try:
            link.send(self._card(listener), timeout=self._call.timeout)
            while True:
                header = link.receive(longest, max_payload=0).header
                if header["t"] not in ("leaves", "hosts"):
                    return header
                asked = True
                listed = self._mine.leaves() if header["t"] == "leaves" else self._mine.host_contents()
                link.send({"t": "list", "list": list(listed)}, timeout=self._call.timeout)
        except TimeoutError as error:
            raise ProcessError(
                f"{self._call}: process {_LEADER} did not answer within {self._call.timeout:g} s (OrbaxSettings.timeout_secs).",
                (_LEADER,),
            ) from error
        except OSError as error:
            if not asked and self._left() > 0.01:
                return None
            raise ProcessError(
                f"{self._call}: process {_LEADER} ended, or closed the connection: {error}.", (_LEADER,)
            ) from error

    def _reach_leader(self) -> Link:
        """Finds process 0's address, and connects; again while the address is that of a call that is over."""
        reason: Exception | None = None
        while (left := self._left()) > 0.01:
            try:
                content = self._store.blocking_key_value_get_bytes(_KEY, max(1, int(1000 * min(left, _SLICE_SECS))))
            except Exception as error:  # JaxRuntimeError: not there yet, or JAX is going down.
                if "DEADLINE_EXCEEDED" not in str(error) and "NOT_FOUND" not in str(error):
                    raise ProcessError(
                        f"{self._call}: JAX's coordination service, which runs on process 0, does not answer: {error}.",
                        (_LEADER,),
                    ) from error
                reason = error
                continue
            try:
                return rendezvous.dial(rendezvous.from_bytes(content), self._me, _LEADER, self._end)
            except (OSError, WireError) as error:
                reason = error
                time.sleep(0.01)
        raise ProcessError(
            f"Process {_LEADER} did not join {self._call} within {self._call.timeout:g} s (OrbaxSettings.timeout_secs). Every process of "
            "the job has to make the same calls in the same order.",
            (_LEADER,),
        ) from reason

    def _go_to_center(self, verdict: Header) -> Session:
        center = self._call.center
        address = Address.from_json(verdict["address"])
        while True:
            try:
                link = rendezvous.dial(address, self._me, center, self._end)
                return Peer(self._me, link, verdict["facts"], self._call.timeout, str(self._call))
            except OSError as error:
                # A crowd of strangers may have pushed this process out; a port where nobody listens means that the center is gone.
                if self._left() > 0.1 and isinstance(error, WireError | ConnectionResetError):
                    time.sleep(0.05)
                    continue
                raise ProcessError(
                    f"Process {center}, which does the file access of {self._call}, cannot be reached at "
                    f"{address.host}:{address.port}: {error}. If its host has several networks, set the environment variable "
                    f"{rendezvous.BIND_VARIABLE} there.",
                    (center,),
                ) from error

    # -- both ---------------------------------------------------------------------------------------------------------------------

    def _card(self, listener: Listener | None) -> Header:
        call = self._call
        return {
            "call": {
                "call": str(call),
                "experimental_io_device": f"process {call.center}",
                "timeout_secs": call.timeout,
                **{name: str(value) for name, value in call.details.items()},
            },
            "digest": self._mine.digest,
            "hosts": self._mine.host_digest,
            "facts": dict(self._mine.facts),
            "address": None if listener is None else listener.address.to_json(),
            "failure": self._failure,
        }

    def _left(self) -> float:
        return max(0.001, self._end - time.monotonic())

    def _raise(self, failure: failures.Failure) -> None:
        if self._error is not None:
            raise self._error
        raise failures.rebuild(failure)


def _named(processes: Any) -> str:
    listed = sorted(processes)
    text = ", ".join(map(str, listed[:20])) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
    return f"Process {text}" if len(listed) == 1 else f"Processes {text}"


def _first_difference(mine: Sequence[tuple[str, str]], theirs: Sequence[tuple[str, str]], me: int, them: int) -> str:
    here, there = dict(mine), dict(theirs)
    for name, text in mine:
        if name not in there:
            return f"{name} is on process {me} only, not on process {them}"
        if there[name] != text:
            return f"{name} is {text} on process {me}, and {there[name]} on process {them}"
    for name, _ in theirs:
        if name not in here:
            return f"{name} is on process {them} only, not on process {me}"
    return f"the order of the leaves is not the same on processes {me} and {them}"


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        warnings.warn(text, UserWarning, stacklevel=2)
