"""Links to files outside of docs/. On a code host they work as they stand; the site gets copies of the files, below ``repository/``."""

import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COPIES = "repository/"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|<)([^)\s#]+)(?=[#)])")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
log = logging.getLogger("mkdocs.hooks.repository_links")


def on_files(files: Any, config: Any) -> Any:
    """Adds what the pages link to, and what those files link to in turn."""
    # Imported here, because the tests use this module without mkdocs.
    from mkdocs.structure.files import File

    waiting = [(file.src_uri, Path(file.abs_src_path)) for file in files.documentation_pages()]
    seen = set()
    while waiting:
        source, path = waiting.pop()
        for found in links(path.read_text(encoding="utf-8")):
            target = in_repository(source, found)
            uri = in_site(target)
            if not uri.startswith(COPIES) or uri in seen:
                continue
            seen.add(uri)
            if not (ROOT / target).is_file():
                log.warning("%s links to %s, which is not a file of the repository", source, target)
                continue
            files.append(File.generated(config, uri, abs_src_path=os.fspath(ROOT / target)))
            if uri.endswith(".md"):
                waiting.append((uri, ROOT / target))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes the links of a page lead to the copies."""
    source = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = in_site(in_repository(source, match[1]))
        return posixpath.relpath(target, posixpath.dirname(source) or ".")

    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in FENCE.split(markdown))


def links(text: str) -> Iterator[str]:
    """The relative links of a page, without anchors."""
    for part in FENCE.split(text):
        if not part.startswith("```"):
            yield from LINK.findall(part)


def in_repository(source: str, link: str) -> str:
    """Returns the path in the repository that a link of a page of the site means."""
    home = source.removeprefix(COPIES) if source.startswith(COPIES) else f"docs/{source}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def in_site(path: str) -> str:
    """Returns where a file of the repository lies in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else COPIES + path
