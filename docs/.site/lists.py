"""Starts a list where the code host does: Python-Markdown wants an empty line between a paragraph and its list."""

import re
from typing import Any

FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
# A line at the margin that is neither an item nor part of a table, with the first item behind it.
BEGINNING = re.compile(r"^(?![*\-] |\d+\. |[ |\n])(.+)\n(?=(?:\* |1\. ))", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Adds the empty lines."""
    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else BEGINNING.sub(r"\1\n\n", part) for part in parts)
