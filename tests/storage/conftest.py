"""What tests of several files in this directory share."""

import pytest
from engines import use_tensorstore


@pytest.fixture(params=["own", "tensorstore"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with the own code for arrays, and once without it."""
    name: str = request.param
    if name == "own":
        monkeypatch.delenv("JAXCKPT_ENGINE", raising=False)
    else:
        use_tensorstore(monkeypatch)
    return name
