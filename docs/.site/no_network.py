"""Fails the build of the site where a page would load something from another host. Links that a reader follows are fine."""

import re
from typing import Any

LOADED = re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Looks at the finished page."""
    from mkdocs.exceptions import PluginError

    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} would load something from another host: {found[0]}")
    return output
