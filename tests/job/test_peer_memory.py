"""Reading the memory of another process: what is there is what was lent, and nobody is taken for somebody else."""

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from jaxckpt.job.modes import peer_memory
from jaxckpt.job.modes.peer_memory import Loans, Reader

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "process_vm_readv"), reason="this system has no process_vm_readv"
)

_OTHER = """
import json, sys
import numpy as np
from jaxckpt.job.modes.peer_memory import Loans

loans = Loans()
array = np.arange(3_000_000, dtype=np.float32)
print(json.dumps({"offer": loans.offer, "at": loans.lend(7, array)}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], dict]]:
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.kill()


def test_what_another_process_lends_is_read(other: tuple[subprocess.Popen[str], dict]) -> None:
    _, lent = other
    reader = Reader(lent["offer"])
    found = np.empty(1_000_000, np.float32)
    reader.read(lent["at"] + 4 * 500_000, found.view(np.uint8))
    np.testing.assert_array_equal(found, np.arange(500_000, 1_500_000, dtype=np.float32))


def test_what_has_gone_is_an_error_with_its_number(other: tuple[subprocess.Popen[str], dict]) -> None:
    process, lent = other
    reader, target = Reader(lent["offer"]), np.empty(1000, np.uint8)
    with pytest.raises(OSError, match="Bad address") as raised:
        reader.read(8, target)
    assert raised.value.errno == errno.EFAULT
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        reader.read(lent["at"], target)


def test_another_process_is_not_taken_for_the_one_that_made_the_offer(
    other: tuple[subprocess.Popen[str], dict],
) -> None:
    offer = other[1]["offer"]
    proof = "00" * 32
    for changed in ({"proof": proof}, {"pid": os.getpid()}, {"at": offer["at"] + 8}, {"pid": 2**22 + 1}, {"at": 8}):
        with pytest.raises(OSError, match="[Aa]ddress|process"):
            Reader({**offer, **changed})


def test_a_process_of_another_user_is_refused() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    loans = Loans()
    program = (
        "import json, os, sys; from jaxckpt.job.modes.peer_memory import Reader; os.setuid(65534)\n"
        "try: Reader(json.loads(sys.argv[1]))\n"
        "except PermissionError: print('refused')"
    )
    command = [sys.executable, "-c", program, json.dumps(loans.offer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr


def test_arrays_stay_until_they_are_taken_back() -> None:
    loans = Loans()
    one, other = np.zeros(10), np.zeros(10)
    counts = sys.getrefcount(one), sys.getrefcount(other)
    assert loans.lend(1, one) == one.ctypes.data
    loans.lend(2, other)
    loans.take_back([1, 5])
    assert (sys.getrefcount(one), sys.getrefcount(other)) == (counts[0], counts[1] + 1)
    loans.close()
    assert sys.getrefcount(other) == counts[1]


def test_consent_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every kernel asks for consent: what is asked of the kernel is what counts."""
    asked = []
    monkeypatch.setattr(peer_memory, "_prctl", lambda option, argument: asked.append((option, argument)) or 0)
    loans = Loans()
    loans.close()
    assert asked == []
    loans.consent(1234)
    loans.consent(1234)
    loans.close()
    loans.close()
    assert {option for option, _ in asked} == {0x59616D61}
    assert [argument for _, argument in asked] == [1234, 0]


def test_consent_stays_while_another_save_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows one reader: it is neither taken away nor exchanged while somebody reads."""
    allowed = [0]
    monkeypatch.setattr(peer_memory, "_prctl", lambda option, argument: allowed.__setitem__(0, argument) or 0)
    first, second, other = Loans(), Loans(), Loans()
    first.consent(1234)
    second.consent(1234)
    other.consent(99)
    assert allowed == [1234]
    first.close()
    other.close()
    assert allowed == [1234]
    second.close()
    assert allowed == [0]
    other.consent(99)
    assert allowed == [99]
    other.close()
    assert allowed == [0]
