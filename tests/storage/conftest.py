"""What tests of several files in this directory share: a directory of every store, and both engines for arrays."""

import pytest
import rooms
from engines import use_tensorstore
from room_cases import cases


@pytest.fixture(params=cases(rooms.PLACES))
def room(request: pytest.FixtureRequest) -> str:
    """A new, empty directory of each store."""
    return rooms.place(request.param, request)


@pytest.fixture(params=["own", "tensorstore"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with the own code for arrays, and once without it."""
    name: str = request.param
    if name == "own":
        monkeypatch.delenv("JAXCKPT_ENGINE", raising=False)
    else:
        use_tensorstore(monkeypatch)
    return name
