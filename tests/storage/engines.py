"""Tests without the own code for arrays."""

import pytest

from jaxckpt.storage.arrays import database, places, pread, stored


def use_tensorstore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has TensorStore read and write all arrays; a use of the own code is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the own code for arrays was used")

    monkeypatch.setenv("JAXCKPT_ENGINE", "tensorstore")
    monkeypatch.setattr(database.Database, "__init__", refuse)
    monkeypatch.setattr(stored, "Index", refuse)
    monkeypatch.setattr(places.InDatabase, "__init__", refuse)
    monkeypatch.setattr(pread, "_read_batch", refuse)
