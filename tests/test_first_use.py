"""`import jaxckpt`: the public names, and the first use of the package by several threads at once."""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

import pytest

import jaxckpt

ROOT = Path(__file__).parents[1]

# What the contract lists, and the classes of what these return and take.
PUBLIC = {
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointDiff",
    "CheckpointError",
    "CheckpointLoadStatus",
    "CheckpointManager",
    "CheckpointOptions",
    "CheckpointState",
    "ConfigError",
    "CorruptCheckpointError",
    "LeafMetadata",
    "MaxShardSizePolicy",
    "OrbaxSettings",
    "OrbaxTranslation",
    "PreemptionCheckpointHandler",
    "PreservationPolicy",
    "Problem",
    "ProcessError",
    "Reader",
    "SaveDecisionPolicy",
    "ShardByTaskPolicy",
    "ShardableTensor",
    "ShardingCallback",
    "TerminationConfig",
    "VerifyReport",
    "WriteSettings",
    "__version__",
    "checkpoints_iterator",
    "get_checkpoint_state",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_config",
    "load_variable",
    "orbax",
    "testing",
    "to_orbax",
    "verify",
}


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_those_of_the_contract() -> None:
    assert set(jaxckpt.__all__) == PUBLIC
    assert {name for name in dir(jaxckpt) if not name.startswith("__")} == PUBLIC - {"__version__"}
    for name in PUBLIC:
        assert getattr(jaxckpt, name) is not None


def test_type_checkers_find_the_names_where_the_program_finds_them() -> None:
    tree = ast.parse((ROOT / "jaxckpt" / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "_typing.TYPE_CHECKING"
    ]
    statements = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    assert len(statements) == len(typed.body)
    found = {}
    for statement in statements:
        (alias,) = statement.names
        # Type checkers take a name for a public one only in the form `import x as x`.
        assert alias.name == alias.asname
        assert statement.module is not None
        found[alias.name] = getattr(importlib.import_module(statement.module), alias.name)
    assert found == {name: getattr(jaxckpt, name) for name in PUBLIC - {"__version__"}}


def test_the_classes_of_what_is_returned_are_public() -> None:
    public = {name: getattr(jaxckpt, name) for name in PUBLIC}
    # A sharding callback need not name the parts of a ShardableTensor: they are used as a tuple, a str and an array.
    values = [value for name, value in public.items() if name != "ShardableTensor"]
    returned = {kind for value in values for kind in _returned(value, public)}
    assert {jaxckpt.CheckpointState, jaxckpt.LeafMetadata, jaxckpt.Problem} <= returned
    ours = {kind for kind in returned if kind.__module__.partition(".")[0] == "jaxckpt"}
    assert {kind.__name__ for kind in ours - set(public.values())} == set()


def _returned(value: Any, public: dict[str, Any]) -> set[type]:
    """Returns the classes of what a public function or the public methods of a class return, and of the fields of a class."""
    hints: list[Any] = []
    if inspect.isfunction(value):
        hints.append(typing.get_type_hints(value, localns=public)["return"])
    elif inspect.isclass(value):
        for name, member in vars(value).items():
            if name.startswith("_"):
                continue
            function = getattr(member, "fget", None) or getattr(member, "func", member)
            if inspect.isfunction(function):
                hints.append(typing.get_type_hints(function, localns=public)["return"])
        if dataclasses.is_dataclass(value):
            hints += typing.get_type_hints(value, localns=public).values()
    kinds: set[type] = set()
    while hints:
        hint = hints.pop()
        # The parameters of a callable come as a list.
        hints += hint if isinstance(hint, list) else typing.get_args(hint)
        if inspect.isclass(hint):
            kinds.add(hint)
    return kinds


def test_importing_shows_no_other_name_and_imports_nothing() -> None:
    code = """
        import sys
        import jaxckpt
        print([name for name in vars(jaxckpt) if not name.startswith("_")])
        print([name for name in ("jax", "numpy", "orbax.checkpoint", "jaxckpt.errors") if name in sys.modules])
        from jaxckpt import *
        print(Checkpoint.__name__, testing.__name__, __version__)
    """
    assert run(code).splitlines() == ["[]", "[]", f"Checkpoint jaxckpt.testing {jaxckpt.__version__}"]


# Every round starts from the import of jaxckpt. JAX is there already, so that the threads meet in jaxckpt's own modules.
_ROUNDS = """
    import importlib, sys, threading, traceback
    import jax
    sys.setswitchinterval(1e-6)
    path, rounds = sys.argv[1], int(sys.argv[2])
    uses = [
        lambda package: package.verify(path).ok,
        lambda package: package.CheckpointOptions().enable_async is False,
        lambda package: package.Checkpoint(x=1).x == 1,
        lambda package: package.latest_checkpoint(path) is None,
        lambda package: package.load_checkpoint(path).get_tensor("x") == 7,
        lambda package: package.to_orbax(package.CheckpointOptions()).asynchronous is False,
        lambda package: package.load_config({"directory": path, "max_to_keep": 3}).max_to_keep == 3,
        lambda package: package.CheckpointManager.__name__ == "CheckpointManager",
    ]
    failures = []
    for _ in range(rounds):
        for name in [name for name in sys.modules if name.partition(".")[0] == "jaxckpt"]:
            del sys.modules[name]
        package = importlib.import_module("jaxckpt")
        barrier = threading.Barrier(len(uses))

        def first_use(use):
            barrier.wait()
            try:
                assert use(package)
            except BaseException:
                failures.append(traceback.format_exc())

        threads = [threading.Thread(target=first_use, args=(use,)) for use in uses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.exit("\\n".join(failures) or None)
"""


@pytest.mark.slow
def test_several_threads_may_use_the_package_first(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(x=7).write(tmp_path / "ckpt")
    run(_ROUNDS, path, 8)


@pytest.mark.slow
def test_a_private_module_waits_for_its_package(tmp_path: Path) -> None:
    """A thread that imports a module of Orbax while another one imports Orbax must not see the unfinished package."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__init__.py").write_text(
        "import events\nevents.begun.set()\nevents.inside.wait(0.5)\nfrom slow.child import value\n"
    )
    (tmp_path / "slow" / "base.py").write_text("value = 3\n")
    (tmp_path / "slow" / "child.py").write_text(
        "import events\nevents.inside.set()\nfrom slow import base\nvalue = base.value\n"
    )
    (tmp_path / "events.py").write_text("import threading\nbegun, inside = threading.Event(), threading.Event()\n")
    code = """
        import importlib, sys, threading, traceback
        from jaxckpt.storage import compat as private
        sys.path.insert(0, sys.argv[1])
        import events

        def package():
            try:
                sys.stdout.write(f"{importlib.import_module('slow').value}\\n")
            except BaseException:
                traceback.print_exc(file=sys.stdout)

        thread = threading.Thread(target=package)
        thread.start()
        assert events.begun.wait(60)
        sys.stdout.write(f"{private._import('slow.child', 'value')}\\n")
        thread.join()
    """
    assert run(code, tmp_path) == "3\n3\n"
