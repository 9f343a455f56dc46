"""Fails the build of the site where a public name is missing in the API reference, or has no docstring."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jaxckpt


def public_names() -> dict[str, object]:
    """Every public function, class and module of jaxckpt, by its full name."""
    found = {}
    for name in jaxckpt.__all__:
        value = getattr(jaxckpt, name)
        if name == "__version__":
            continue
        found[f"jaxckpt.{name}"] = value
        if isinstance(value, ModuleType):
            # A name that the module makes when it is asked for, such as a marker of pytest, is not asked for.
            found.update({f"jaxckpt.{name}.{inner}": vars(value).get(inner) for inner in value.__all__})
    return found


def undocumented() -> list[str]:
    """The public names, and the public methods and properties of public classes, that have no docstring."""
    missing = []
    for name, value in public_names().items():
        missing += [each for each, text in docstrings(name, value) if not (text or "").strip()]
    return missing


def docstrings(name: str, value: object) -> Iterator[tuple[str, str | None]]:
    """Yields the full names of a public object and of its public members, with their docstrings."""
    # A pytest marker, and other values, are explained on their page.
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return
    yield name, value.__doc__
    if inspect.isclass(value):
        for member, found in vars(value).items():
            described = isinstance(found, property | staticmethod | classmethod) or inspect.isroutine(found)
            if described and not member.startswith("_"):
                yield f"{name}.{member}", inspect.getdoc(getattr(value, member))


def on_page_content(html: str, **_: Any) -> str:
    """Shows the default that help() shows, in place of the marker for "not given"."""
    return html.replace("_NOT_GIVEN", "False")


def on_env(env: Any, config: Any, files: Any) -> Any:
    """Compares the names with the anchors of the API reference, once all pages are made."""
    # Imported here, because the tests use this module without mkdocs.
    from mkdocs.exceptions import PluginError

    pages = [file.page.content for file in files.documentation_pages() if file.src_uri.startswith("api/")]
    anchors = {anchor for content in pages for anchor in re.findall(r'\bid="([^"]+)"', content)}
    absent = sorted(set(public_names()) - anchors)
    if absent:
        raise PluginError(f"not in the API reference (docs/api): {', '.join(absent)}")
    if bare := undocumented():
        raise PluginError(f"public names without a docstring: {', '.join(bare)}")
    return env
