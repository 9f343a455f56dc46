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
from typing import Any

import jax

from jaxckpt._lib.uninterrupted import uninterrupted
from jaxckpt.errors import ProcessError
from jaxckpt.job.agree.call import Call, Contribution, named
from jaxckpt.job.agree.comparison import compare_calls, compare_host_leaves, compare_trees
from jaxckpt.job.protocol import handshake
from jaxckpt.job.protocol.handshake import Address, Listener
from jaxckpt.job.protocol.wire import Header, Link, WireError, close_gently
from jaxckpt.job.session import failures
from jaxckpt.job.session.center import Center
from jaxckpt.job.session.peer import Peer
from jaxckpt.job.session.session import Session, patience

_KEY = "jaxckpt/meeting"
_BEGUN = "all are there"
_LEADER = 0
_SLICE_SECS = 0.5
_INTERRUPTED_SECS = 5.0
_LINGER_SECS = 1.0
_CONNECT_SECS = 10.0
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
        if not isinstance(error, Exception):
            call = _hurried(call)
        with contextlib.suppress(Exception):  # The others will have to find out by themselves.
            _meet(call, Contribution(), error)
        raise
    return _meet(call, contribution, None)


def _meet(call: Call, contribution: Contribution, error: BaseException | None) -> Session:
    end = time.monotonic() + call.timeout
    taken: list[bool] = []
    try:
        # One step of Python's: an interrupt comes before the turn is taken, or when it is known to be. Otherwise no later call would
        # ever get it.
        taken.extend(map(_turns.acquire, (True,), (call.timeout,)))
        if not taken[0]:
            raise TimeoutError(
                f"{call}: another call of this process still waits for other processes after {call.timeout:g} s "
                "(OrbaxSettings.timeout_secs)."
            )
        meeting = _Meeting(call, contribution, error, end)
        try:
            return meeting.hold()
        except Exception:
            raise
        except BaseException as interrupt:
            if not meeting.joined and error is None:  # The others would wait for this process.
                call = _hurried(call)
                with contextlib.suppress(Exception):
                    _Meeting(call, Contribution(), interrupt, time.monotonic() + call.timeout).hold()
            raise
    finally:
        # Nothing is called before the release: an interrupt could come there.
        if taken and taken[0]:
            _turns.release()


def _hurried(call: Call) -> Call:
    """Whoever presses Ctrl-C does not want to wait long."""
    return dataclasses.replace(call, timeout=min(call.timeout, _INTERRUPTED_SECS))


class _Meeting:
    def __init__(self, call: Call, contribution: Contribution, error: BaseException | None, end: float) -> None:
        from jaxckpt.storage import compat

        self._call = call
        self._mine = contribution
        self._me = jax.process_index()
        self._others = set(range(jax.process_count())) - {self._me}
        self._failure = None if error is None else failures.describe(error, self._me)
        self._error = error
        self._end = end
        self.joined = False  # Whether the others know of this process, so that they notice when it leaves.
        found = compat.coordination()
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
                listener = Listener(handshake.interface_towards(self._coordinator), self._others)
                listener.start()
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
                self._store.key_value_set_bytes(_KEY, handshake.to_bytes(listener.address), True)
                links, missing = listener.wait(self._end)
            finally:
                # Before anyone is told anything: whoever begins the next call must not find the address of this one.
                self._store.key_value_delete(_KEY)
                listener.stop()
            cards = self._read_cards(links)
            verdict = self._verdict(cards, links, missing)
            self.joined = True
            self._tell(links, verdict)
            if verdict["t"] == "failed":
                self._raise(verdict["failure"])
            _warn(verdict["warnings"])
            if self._call.center == _LEADER:
                session = Center(self._me, links, verdict["facts"], self._call.timeout, str(self._call))
                listener.hand_out()
                kept = True
                return session
        except BaseException as error:
            # The others would find out by themselves, but not why. After an interrupt they come again, and are told then.
            if isinstance(error, Exception) or self.joined:
                self._tell(links, {"t": "failed", "failure": failures.describe(error, self._me)})
            raise
        finally:
            if not kept:
                close_gently(list(links.values()), _LINGER_SECS)
        return self._go_to_center(verdict)

    def _tell(self, links: Mapping[int, Link], header: Header) -> None:
        def tell() -> None:
            for link in links.values():
                with contextlib.suppress(OSError):
                    link.send(header, timeout=min(self._call.timeout, _LINGER_SECS))

        uninterrupted(tell)

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
                f"{named(missing)} did not join {self._call} within {self._call.timeout:g} s (OrbaxSettings.timeout_secs). Every process "
                "of the job has to make the same calls in the same order.",
                missing,
            )

        def ask(process: int, what: str) -> list[tuple[str, str]]:
            return self._ask(links[process], what)

        try:
            compare_calls(self._call, cards, self._me)
            compare_trees(self._call, self._mine, cards, self._me, ask)
            warned = compare_host_leaves(self._call, self._mine, cards, self._me, ask)
        except ProcessError as error:
            return {"t": "failed", "failure": failures.describe(error, self._me)}
        lost = {process for process, link in links.items() if not link.is_open()}
        if lost:  # Interrupted, perhaps. Where process 0 is not the center, that one would wait for it.
            return self._refusal(f"{named(lost)} ended, or closed the connection, as {self._call} began.", lost)
        center = cards[self._call.center]
        return {"t": "agreed", "facts": center["facts"], "address": center["address"], "warnings": warned}

    def _refusal(self, text: str, processes: Any) -> Header:
        return {"t": "failed", "failure": failures.describe(ProcessError(text, processes), self._me)}

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
                link.finish()
                # All are there, at this moment. What follows needs no work of anybody, so that one that was lost is found out soon.
                self._end = time.monotonic() + min(self._call.timeout, _CONNECT_SECS)
                try:
                    return self._go_to_center(header) if listener is None else self._await_peers(listener, header)
                except ProcessError:
                    self._heed(link)
                    raise
            finally:
                if not kept:
                    link.close()

    def _await_peers(self, listener: Listener, verdict: Header) -> Session:
        """Waits, as the center that is not process 0, for all others."""
        links, missing = listener.wait(self._end)
        listener.stop()
        try:
            if missing:
                raise ProcessError(
                    f"{named(missing)} joined {self._call}, and then did not connect to process {self._me}, which does the file access.",
                    missing,
                )
            self._tell(links, {"t": _BEGUN})
            session = Center(self._me, links, verdict["facts"], self._call.timeout, str(self._call))
            listener.hand_out()
            return session
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
            self.joined = True
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

    def _heed(self, link: Link) -> None:
        """Raises what process 0 has failed with after it had told this process that all is well: the others know by then."""
        with contextlib.suppress(OSError):
            header = link.receive(_LINGER_SECS, max_payload=0).header
            if header["t"] == "failed":
                self._raise(header["failure"])

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
                return handshake.dial(handshake.from_bytes(content), self._me, _LEADER, self._end)
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
                link = handshake.dial(address, self._me, center, self._end)
                self._await_beginning(link)
                return Peer(self._me, link, verdict["facts"], self._call.timeout, str(self._call))
            except ProcessError:
                raise
            except OSError as error:
                # A crowd of strangers may have pushed this process out; a port where nobody listens means that the center is gone.
                if self._left() > 0.1 and isinstance(error, WireError | ConnectionResetError):
                    time.sleep(0.05)
                    continue
                raise ProcessError(
                    f"Process {center}, which does the file access of {self._call}, cannot be reached at "
                    f"{address.host}:{address.port}: {error}. If its host has several networks, set the environment variable "
                    f"{handshake.BIND_VARIABLE} there.",
                    (center,),
                ) from error

    def _await_beginning(self, link: Link) -> None:
        """Waits until the center has everybody."""
        try:
            header = link.receive(self._left() + patience(self._call.timeout), max_payload=0).header
            if header["t"] == "failed":
                self._raise(header["failure"])
        except BaseException:
            link.close()
            raise

    # -- both ---------------------------------------------------------------------------------------------------------------------

    def _card(self, listener: Listener | None) -> Header:
        call = self._call
        return {
            "call": {
                "call": str(call),
                "experimental_io_device": f"process {call.center}",
                "timeout_secs": call.timeout,
                **call.detail_texts(),
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


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        warnings.warn(text, UserWarning, stacklevel=2)
