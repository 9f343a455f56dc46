"""A directory of every store, for the suites that all stores and all committers pass."""

import pytest
import rooms


@pytest.fixture(params=list(rooms.PLACES))
def room(request: pytest.FixtureRequest) -> str:
    """A new, empty directory of each store."""
    return rooms.place(request.param, request)
