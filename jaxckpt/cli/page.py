"""Pages with pictures: one self-contained HTML file each, which a browser shows without a network.

Names, paths and values come from strangers' files. Every text passes through `safe`, so that it is shown and never runs: neither as HTML,
nor as the markup that plotly reads in labels. Everything that a page holds passes through this module.
"""

import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxckpt._lib.output import printable

# The font of pictures.
FONT = {"family": "system-ui, DejaVu Sans, sans-serif", "size": 13}
# Whatever begins so may be replaced by a new page.
_DOCTYPE = "<!doctype html>"
# A browser refuses whatever else a page might try to load or run.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; worker-src blob:"
)
# Plotly knows no named entity for quotes. It replaces %{...} in some texts; a brace that is an entity is only a brace.
_ENTITIES = {ord("'"): "&#39;", ord('"'): "&#34;", ord("{"): "&#123;"}
_STYLE = """
:root { color-scheme: light; --ink: #1c2330; --faint: #667085; --line: #e4e7ec; --accent: #2a6fdb; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 28px 32px 64px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 6px; }
p { margin: 4px 0 10px; color: var(--faint); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th { text-align: left; font-weight: 600; color: var(--faint); border-bottom: 1px solid var(--line); padding: 4px 18px 4px 0; }
td { border-bottom: 1px solid var(--line); padding: 3px 18px 3px 0; vertical-align: top; overflow-wrap: anywhere; min-width: 4em; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { font-family: ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
summary { cursor: pointer; color: var(--accent); margin: 6px 0; }
"""


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
      header: the titles of the columns.
      rows: the cells, row by row. The first cell of a row is a name.
      right: indices of the columns that are aligned at the right.
      title: what the table shows; it can be folded by it. Empty for none.
      is_open: whether the table is unfolded at first.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()
    title: str = ""
    is_open: bool = True


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
      title: its heading.
      text: a sentence or two below the heading.
      figures: plotly's figures; see `graphs`. Several are shown beside each other as far as they fit.
      tables: tables, below the figures.
    """

    title: str
    text: str = ""
    figures: Sequence[Any] = ()
    tables: Sequence[Table] = ()


def safe(text: object) -> str:
    """Returns a text for a label of plotly or for HTML: nothing in it acts on the page, nothing is invisible.

    Args:
      text: any text, such as a leaf's name.
    """
    return html.escape(printable(str(text)), quote=False).translate(_ENTITIES)


def short(name: str, most: int = 60) -> str:
    """Returns the end of a name that is too long for a label.

    Args:
      name: the name of a leaf.
      most: how many characters a label may have.
    """
    return name if len(name) <= most else f"…{name[1 - most :]}"


def graphs() -> Any:
    """Returns the module ``plotly.graph_objects``.

    Raises:
      ImportError: plotly is not installed; says how to install it.
    """
    try:
        import plotly.graph_objects as found
    except ImportError as error:
        raise ImportError(
            "pages with pictures (--html) need plotly, which is not installed. Install jaxckpt with its extra 'html', "
            "in a clone of the repository: pip install '.[html]'"
        ) from error
    return found


def check(path: str) -> str:
    """Checks, before any work is done, that a page can be written. Returns the path.

    Args:
      path: path of the page.

    Raises:
      FileExistsError: a file that is not a page is there.
      ImportError: see `graphs`.
      OSError: the directory of the page does not exist, or the path is a directory.
    """
    graphs()
    path = os.path.expanduser(path)
    folder = os.path.dirname(path) or os.curdir
    # Raises an OSError that names the folder.
    os.scandir(folder).close()
    if os.path.lexists(path):
        with open(path, "rb") as file:
            begin = file.read(len(_DOCTYPE))
        if begin and begin.lower() != _DOCTYPE.encode():
            raise FileExistsError(
                f"{path} exists and is not an HTML page, so it is not replaced. Give another name to --html, or remove the file."
            )
    return path


def write_page(path: str, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes a page. It replaces an older page at the same path in one step.

    Args:
      path: path of the page.
      title: its title.
      subtitle: a line below the title.
      sections: its parts.

    Raises:
      OSError: the page cannot be written.
      FileExistsError: see `check`.
      ImportError: see `graphs`.
    """
    path = check(path)
    text = _html(title, subtitle, sections)
    folder = os.path.dirname(path) or os.curdir
    descriptor, new = tempfile.mkstemp(prefix=f".{os.path.basename(path)[:100]}-", suffix=".html", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        # As for a file that is opened for writing, and not for its owner alone.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(new, 0o666 & ~mask)
        os.replace(new, path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise


def _html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    from plotly.offline import get_plotlyjs

    number = 0
    parts = []
    for section in sections:
        figures = []
        for figure in section.figures:
            number += 1
            figures.append(
                figure.to_html(
                    full_html=False,
                    include_plotlyjs=False,
                    div_id=f"figure-{number}",
                    config={"displaylogo": False, "responsive": True, "displayModeBar": False},
                )
            )
        drawn = f'<div class="figures">{"".join(figures)}</div>' if len(figures) > 1 else "".join(figures)
        about = f"<p>{safe(section.text)}</p>" if section.text else ""
        tables = "".join(map(_table, section.tables))
        parts.append(f"<section><h2>{safe(section.title)}</h2>{about}{drawn}{tables}</section>")
    body = "\n".join(parts)
    script = f"<script>{get_plotlyjs()}</script>" if number else ""
    return (
        f'{_DOCTYPE}\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width"><meta name="generator" content="jaxckpt">\n'
        f"<title>{safe(title)}</title><style>{_STYLE}</style>{script}</head>\n"
        f"<body><h1>{safe(title)}</h1><p>{safe(subtitle)}</p>\n{body}\n</body></html>\n"
    )


def _table(table: Table) -> str:
    def cell(word: str, index: int, tag: str) -> str:
        kind = "number" if index in table.right else "name" if index == 0 and tag == "td" else ""
        return f"<{tag}{f' class={kind}' if kind else ''}>{safe(word)}</{tag}>"

    def row(words: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(cell(word, index, tag) for index, word in enumerate(words))}</tr>"

    rows = "\n".join(row(words, "td") for words in table.rows)
    head = f"<thead>{row(table.header, 'th')}</thead>"
    drawn = f'<div class="wide"><table>{head}<tbody>\n{rows}\n</tbody></table></div>'
    if not table.title:
        return drawn
    return f"<details{' open' if table.is_open else ''}><summary>{safe(table.title)}</summary>{drawn}</details>"
