"""The settings of all tests: JAX on the CPU, and examples of Hypothesis without time limits (machines may be busy)."""

import functools
import gc
import os
import re
import signal
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from bucket_server import Bucket, Server, UnavailableError
from s3_server import S3Server
from storage_server import StorageServer

# What imports and the collection of tests make stays. To look for garbage in it took a sixth of their time.
gc.disable()

# Before JAX is imported. Several devices, so that shardings can be tested in one process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

hypothesis.settings.register_profile(
    "jaxckpt", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
# Of `make test-fast`.
hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("jaxckpt"), max_examples=10)
hypothesis.settings.load_profile("jaxckpt")

# These import JAX, whose environment is set now.
import jax  # noqa: E402
import plain_orbax  # noqa: E402

Completed = subprocess.CompletedProcess[str]

# Directories whose tests all have a marker, so that it need not stand in each of their files.
MARKERS = {
    "demo": "slow",
    "faults": "slow",
    "buckets": "bucket",
    "hostile": "slow",
    "interrupts": "slow",
    "job/processes": "job",
    "testing": "job",
}

# What `make test-fast` leaves out.
LEFT_OUT = ("slow", "job", "bucket")


def pytest_configure(config: pytest.Config) -> None:
    """Lets interrupts reach the tests, and keeps what XLA compiles for the next run."""
    # A shell without job control starts its background processes with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.pluginmanager.hasplugin("cacheprovider") and config.cache is not None:
        # Two processes must not write the same file, so each worker has a directory of its own.
        compiled = config.cache.mkdir(f"xla-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}")
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_finish() -> None:
    """Excludes all that exists before the first test from garbage collection, which tests ask for many times."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Turns garbage collection on again."""
    try:
        return (yield)
    finally:
        gc.enable()


@functools.cache
def _markers_of(path: Path) -> list[str]:
    """Returns the markers of the directories that a test module lies in."""
    return [marker for directory, marker in MARKERS.items() if Path(__file__).parent / directory in path.parents]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks the tests of those directories."""
    for marker in _markers_of(item.path):
        item.add_marker(marker)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves `make test-fast` one case of each test with the marker `sampled`: the first that it can run."""
    chosen = set()
    for item in items:
        if item.get_closest_marker("sampled") is None or any(map(item.get_closest_marker, LEFT_OUT)):
            continue
        test = item.nodeid.partition("[")[0]
        if test in chosen:
            item.add_marker("slow")
        chosen.add(test)


@pytest.fixture(scope="session")
def orbax_recorder(tmp_path_factory: pytest.TempPathFactory) -> "plain_orbax.Recorder":
    """Keeps what the tests save, as far as it is new."""
    recorder = plain_orbax.Recorder(tmp_path_factory.mktemp("plain-orbax"))
    recorder.watch()
    return recorder


@pytest.fixture(autouse=True)
def _plain_orbax_opens_it(orbax_recorder: "plain_orbax.Recorder") -> Iterator[None]:
    """Whatever a test saves, plain Orbax opens, with and without targets."""
    yield
    for recorded in orbax_recorder.take():
        plain_orbax.check(*recorded)


@pytest.fixture
def nothing_dropped() -> None:
    """For a test that counts all warnings: what earlier tests have dropped complains now, and not while it counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="session")
def cli_command() -> tuple[list[str], dict[str, str]]:
    """The command line as users run it: how its arguments begin, and its environment. Warnings are errors in it."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", "XLA_FLAGS": ""}
    return [sys.executable, "-m", "jaxckpt"], environment


@pytest.fixture(scope="session")
def cli(cli_command: tuple[list[str], dict[str, str]]) -> Callable[..., Completed]:
    """Runs the command line in a process of its own: ``cli("inspect", path)``."""
    command, environment = cli_command

    def run(*arguments: object, **options: object) -> Completed:
        done = subprocess.run(
            [*command, *map(str, arguments)],
            # A test may have set something since.
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            **options,
        )
        # On a busy machine a save may take so long that the next one waits for it.
        done.stderr = re.sub(r"(?m)^.*Training waited .* for the save before, .*\n", "", done.stderr)
        return done

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Completed]:
    """Calls the command line in the process of the tests, which is much faster than starting one: ``call("inspect", path)``.

    Returns what a process would have returned and printed.
    """
    # Not before a test asks for it: the command line is more than most tests need.
    from jaxckpt.cli import main

    def run(*arguments: object) -> Completed:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run


def _running(start: Callable[[Path], Server], directory: Path) -> Iterator[Server]:
    """A storage server of the test process; where it does not run, the test is skipped."""
    try:
        server = start(directory)
    except UnavailableError as error:
        pytest.skip(str(error))
    before = {name: os.environ.get(name) for name in server.environment()}
    # TensorStore reads some of them when it opens the first bucket of the process.
    os.environ.update(server.environment())
    yield server
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    server.close()


@pytest.fixture(scope="session")
def gs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the interface of Google Cloud Storage."""
    yield from _running(StorageServer, tmp_path_factory.mktemp("gs-server"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the interface of S3."""
    yield from _running(S3Server, tmp_path_factory.mktemp("s3-server"))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Another server with the interface of S3: one that keeps data. Its buckets are found only in tests that ask for one."""
    try:
        server = S3Server(tmp_path_factory.mktemp("seaweedfs"), "seaweedfs")
    except UnavailableError as error:
        pytest.skip(str(error))
    yield server
    server.close()


def _new_bucket(server: Server) -> Iterator[Bucket]:
    made = Bucket(f"test-{uuid.uuid4().hex[:12]}", server)
    server.make_bucket(made.name)
    yield made
    made.rule(None)


@pytest.fixture
def gs_bucket(gs_server: Server) -> Iterator[Bucket]:
    """A new bucket of Google Cloud Storage."""
    yield from _new_bucket(gs_server)


@pytest.fixture
def s3_bucket(s3_server: Server) -> Iterator[Bucket]:
    """A new bucket of S3."""
    yield from _new_bucket(s3_server)


@pytest.fixture
def seaweedfs_bucket(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A new bucket of SeaweedFS."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    yield from _new_bucket(seaweedfs)


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A new bucket of each kind of server."""
    made: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return made
