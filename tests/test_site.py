"""The pages of the documentation: their code runs, their links lead somewhere, and the API reference has every public name."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("**/*.md"))

# Read from top to bottom, twice in the same directory: what a page begins, the second run continues.
TWICE = ["recipes/models.md"]
# Read once, one after another in one process, each in a directory of its own.
ONCE = ["index.md", "options.md", "recipes/clusters.md", "recipes/data.md", "recipes/weights.md", "why.md"]
BELOW = ["config.md", "quick_start.md", "recipes/evaluator.md", "recipes/hydra.md"]
# Other tests that run the code of pages, and name the pages.
OTHERS = ["test_readme.py", "testing/test_package.py", "job/processes/mp_managing.py"]


def blocks(page: str, language: str = "python") -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def start(command: list[str], directory: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: list[str], directory: Path) -> str:
    return output_of(start(command, directory))


def output_of(process: "subprocess.Popen[str]") -> str:
    with process:
        try:
            output, errors = process.communicate(timeout=120)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, errors
    return output


def site_module(name: str) -> ModuleType:
    """A hook of mkdocs, which this test uses without mkdocs."""
    spec = importlib.util.spec_from_file_location(name, DOCS / ".site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_of_every_page_is_run_somewhere() -> None:
    others = "".join((ROOT / "tests" / name).read_text(encoding="utf-8") for name in OTHERS)
    here = {*TWICE, *ONCE, *BELOW}
    assert [page for page in PAGES if blocks(page) and page not in here and page not in others] == []
    assert all(blocks(page) for page in here)


@pytest.mark.slow
@pytest.mark.parametrize("page", TWICE)
def test_a_page_runs_and_goes_on(page: str, tmp_path: Path) -> None:
    if page == "recipes/models.md":
        pytest.importorskip("equinox")
    for _ in range(2):
        run(["-c", "\n".join(blocks(page))], tmp_path)


@pytest.mark.slow
def test_pages_run(tmp_path: Path) -> None:
    for page in ONCE:
        (tmp_path / page).mkdir(parents=True)
        (tmp_path / page / "code.py").write_text("\n".join(blocks(page)), encoding="utf-8")
    # The path is the name of the code in a traceback.
    program = "import os, runpy, sys\nfor page in sys.argv[1:]: os.chdir(page); runpy.run_path(f'{page}/code.py')"
    run(["-c", program, *(str(tmp_path / page) for page in ONCE)], tmp_path)


@pytest.mark.slow
def test_the_quick_start_prints_what_it_says(tmp_path: Path) -> None:
    code = blocks("quick_start.md")[0]
    printed = run(["-c", code], tmp_path) + run(["-c", code], tmp_path)
    shown = [line for line in blocks("quick_start.md", "sh")[1].splitlines() if not line.startswith("$")]
    assert printed.splitlines() == shown


@pytest.mark.slow
def test_the_evaluator_beside_the_trainer(tmp_path: Path) -> None:
    for name, code in zip(("trainer.py", "evaluator.py"), blocks("recipes/evaluator.md"), strict=True):
        (tmp_path / name).write_text(code, encoding="utf-8")
    with start(["-u", "evaluator.py"], tmp_path) as evaluator:
        try:
            run(["trainer.py"], tmp_path)
            assert evaluator.stdout is not None
            lines = []
            for line in evaluator.stdout:
                lines.append(line.strip())
                if line.startswith("step 5"):
                    break
        finally:
            # It would wait for a minute for the next checkpoint.
            evaluator.kill()
    assert lines[-1:] == ["step 5: mean 5.0"]
    assert lines == sorted(set(lines))


def test_the_config_example_of_its_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (code,) = blocks("config.md")
    code = code.replace("/data/run-7", str(tmp_path / "run-7"))
    before = """
        import types
        import jaxckpt
        trainer = types.SimpleNamespace(step=3)
        checkpoint = jaxckpt.Checkpoint(step=3)
    """
    found: dict[str, object] = {}
    exec(re.sub(r"^ +", "", before, flags=re.MULTILINE) + code, found)
    assert str(tmp_path / "run-7") in repr(found["config"])


def test_the_config_of_the_hydra_recipe_is_right(tmp_path: Path) -> None:
    from jaxckpt import load_config

    (text,) = blocks("recipes/hydra.md", "yaml")
    (tmp_path / "train.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "train.yaml", section="checkpoint")
    assert config.numbers == "step"
    assert config.options.enable_async
    compile(blocks("recipes/hydra.md")[0], "train.py", "exec")


# hydra-core needs an older omegaconf than the other tests use, so it is not among the packages of the tests.
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hydra") is None, reason="hydra-core is not installed")
def test_the_hydra_recipe_runs(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text(blocks("recipes/hydra.md", "yaml")[0], encoding="utf-8")
    (tmp_path / "train.py").write_text(blocks("recipes/hydra.md")[0], encoding="utf-8")
    assert "at step 25" in run(["train.py", "steps=25"], tmp_path)


LINKS = [
    (page, link) for page in PAGES for link in site_module("repository_links").links((DOCS / page).read_text("utf-8"))
]


@pytest.mark.parametrize("page", PAGES)
def test_links_of_pages_lead_somewhere(page: str) -> None:
    lost = [link for source, link in LINKS if source == page and not (DOCS / page).parent.joinpath(link).exists()]
    assert lost == []


def test_links_out_of_docs_lead_to_copies_in_the_site() -> None:
    links = site_module("repository_links")
    assert (
        links.in_site(links.in_repository("recipes/data.md", "../../CONTRIBUTING.md")) == "repository/CONTRIBUTING.md"
    )
    assert links.in_site(links.in_repository("repository/CONTRIBUTING.md", "docs/cli.md")) == "cli.md"


def test_every_page_has_a_place_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in PAGES if f" {page}\n" not in menu] == []


def test_every_public_name_is_in_the_reference_and_has_a_docstring() -> None:
    names = site_module("public_names")
    pages = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES if page.startswith("api/"))
    shown = set(re.findall(r"^::: ([\w.]+)$|\{ #([\w.]+) \}$", pages, re.MULTILINE))
    shown_names = {name for pair in shown for name in pair if name}
    # The page of jaxckpt.testing shows all that is public in the module.
    public = {name for name in names.public_names() if not name.startswith("jaxckpt.testing.")}
    assert public - shown_names == set(), "add a line `::: NAME` to a page in docs/api"
    assert names.undocumented() == []


def test_what_a_page_would_load_from_another_host_is_found() -> None:
    loaded = site_module("no_network").LOADED
    assert loaded.search('<img alt="x" src="https://example.com/x.png">')
    assert loaded.search('<script async src="//example.com/x.js">')
    assert not loaded.search('<a href="https://example.com">x</a> <img src="assets/x.png"> <script src="x.js">')


def test_a_name_without_a_docstring_is_found() -> None:
    class Bare:
        """Has one."""

        def method(self) -> None:
            pass

    names = site_module("public_names")
    assert [name for name, text in names.docstrings("Bare", Bare) if not text] == ["Bare.method"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra 'docs')")
def test_the_build_refuses_a_missing_name_and_a_broken_link(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("benchmarks", "configs", "docs", "jaxckpt"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    page = tmp_path / "docs" / "api" / "errors.md"
    page.write_text(page.read_text(encoding="utf-8").replace("::: jaxckpt.ConfigError\n", ""), encoding="utf-8")
    (tmp_path / "docs" / "why.md").write_text("# Why\n\n[gone](gone.md)\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert "not in the API reference (docs/api): jaxckpt.ConfigError" in done.stderr
    assert "'gone.md'" in done.stderr
