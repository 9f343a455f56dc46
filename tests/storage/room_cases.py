"""The cases of the conformance suites, for pytest, which `rooms` must not import."""

from collections.abc import Iterable
from typing import Any

import pytest
from rooms import COMMITTERS


def cases(names: Iterable[str]) -> list[Any]:
    """Returns the parameters of a fixture. A case whose store is a bucket has the marker of tests that need the storage server.

    Args:
      names: keys of `rooms.PLACES` or of `rooms.COMMITTERS`.
    """
    stores = {name: COMMITTERS[name][1] if name in COMMITTERS else name for name in names}
    return [pytest.param(name, marks=[] if store == "disk" else [pytest.mark.bucket]) for name, store in stores.items()]
