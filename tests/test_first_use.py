"""`import jaxckpt`: the public names, and the first use of the package by several threads at once."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import jaxckpt

ROOT = Path(__file__).parents[1]

# What the contract lists.
PUBLIC = {
    *(
        "Checkpoint",
        "CheckpointConfig",
        "CheckpointError",
        "CheckpointLoadStatus",
        "CheckpointManager",
        "CheckpointOptions",
    ),
    *("ConfigError", "CorruptCheckpointError", "MaxShardSizePolicy", "OrbaxSettings", "ProcessError", "Reader"),
    *("ShardByTaskPolicy", "__version__", "checkpoints_iterator", "get_checkpoint_state", "latest_checkpoint"),
    *("list_variables", "load_checkpoint", "load_config", "load_variable", "testing", "to_orbax", "verify"),
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
    tree = ast.parse((ROOT / "jaxckpt" / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.asname for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == PUBLIC - {"__version__"}


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


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    imports = {module: _imported_at_once(module, path) for module, path in _modules().items()}
    done: set[str] = set()

    def follow(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join([*above[above.index(module) :], module])}"
        if module not in done:
            for other in sorted(imports[module]):
                follow(other, (*above, module))
            done.add(module)

    for module in imports:
        follow(module, ())


def _modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "jaxckpt").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imported_at_once(module: str, path: Path) -> set[str]:
    """Returns the modules of the package that importing `module` imports by a statement: not those inside functions."""
    known, found = _modules(), set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & known.keys()) | ({node.module} if inside - known.keys() else set())
    return (found & known.keys()) - {module}


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


def test_several_threads_may_use_the_package_first(tmp_path: Path) -> None:
    path = jaxckpt.Checkpoint(x=7).write(tmp_path / "ckpt")
    run(_ROUNDS, path, 8)


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
