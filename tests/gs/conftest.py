"""A bucket for every test, on a storage server of the test process."""

import os
import uuid
from collections.abc import Iterator

import pytest
from storage_server import Bucket, StorageServer, UnavailableError


@pytest.fixture(scope="session")
def storage_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageServer]:
    """The server; where it does not run, the test is skipped."""
    try:
        server = StorageServer(tmp_path_factory.mktemp("storage-server"))
    except UnavailableError as error:
        pytest.skip(str(error))
    before = {name: os.environ.get(name) for name in server.environment()}
    os.environ.update(server.environment())  # TensorStore reads them when it opens the first bucket of the process.
    yield server
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    server.close()


@pytest.fixture
def bucket(storage_server: StorageServer) -> Iterator[Bucket]:
    """A new bucket."""
    made = Bucket(f"test-{uuid.uuid4().hex[:12]}", storage_server)
    storage_server.make_bucket(made.name)
    yield made
    made.rule(None)
