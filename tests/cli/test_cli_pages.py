"""The pages of `inspect --html` and `diff --html`: what they hold, how a browser shows them, and what strangers' names cannot do."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chromium import needs_chromium, rendered

import jaxckpt
from jaxckpt.cli import diff_page, inspect_page, report_page, shardings
from jaxckpt.cli.page import Section, Table, graphs, safe, write_page
from jaxckpt.leaf_kinds.described import LeafMetadata

# Each of these would change the title of the page if it ran or were read as HTML.
EVIL = """</script><script>document.title='owned'</script><img src=x onerror="document.title='owned'">%{x}&lt;b&gt;\u202e"""


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints with layers, shardings, NaN, and such names."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def put(array, *spec):
        return jax.device_put(array, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))

    layers = [{"w": put(np.full((8, 4), number, np.float32), "data", "model"), "b": np.ones(3)} for number in range(4)]
    state = {"layers": layers, EVIL: jnp.arange(5.0), "bad": np.array([1, np.nan]), "text": EVIL}
    first = jaxckpt.Checkpoint(model=state, step=1).write(tmp_path / "first")
    layers[2]["b"] = np.full(3, 2.0)
    state[EVIL] = jnp.arange(1.0, 6.0)
    second = jaxckpt.Checkpoint(model=state, step=2, more=1).write(tmp_path / "second")
    return first, second


def test_every_axis_has_a_title(pair, tmp_path, call, monkeypatch):
    drawn = []
    for module in (inspect_page, diff_page, report_page):
        monkeypatch.setattr(module, "write_page", lambda *arguments: drawn.extend(arguments[-1]))
    first, second = pair
    checkpoint = jaxckpt.Checkpoint(model={"w": np.ones(3)})
    jaxckpt.CheckpointManager(checkpoint, tmp_path / "run", 2).save(metrics={"loss": 0.5})
    page = tmp_path / "page.html"
    assert call("inspect", "--html", page, first).returncode == 0
    assert call("diff", "--html", page, first, second).returncode == 1
    assert call("report", "--html", page, tmp_path / "run").returncode == 0
    axes = {}
    for section in drawn:
        for figure in section.figures:
            for axis in (figure.layout.xaxis, figure.layout.yaxis):
                # A treemap has none, and the leaves without a layer are one column.
                if axis.visible is not False and list(axis.ticktext or "?") != [""]:
                    axes.setdefault(section.title, []).append(axis.title.text)
    # The pictures of layouts name an axis only if the array has it.
    assert {"By layer and kind", "Other leaves", "Statistics", "Timeline", "Metrics"} < axes.keys()
    del axes["How arrays lay on the mesh"]
    assert all(all(titles) for titles in axes.values()), axes


def test_pages_are_written(pair, tmp_path, call):
    first, second = pair
    page = tmp_path / "page.html"
    done = call("inspect", "--html", page, first)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"wrote {page}"
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "NaN or infinite numbers are in: model/bad." in text
    assert "of (8, 4)" in text
    # It replaces an older page, but nothing else.
    done = call("diff", "--html", page, first, second)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, f"wrote {page}")
    assert "4 of 14 leaves differ" in page.read_text()
    page.write_text("notes")
    done = call("diff", "--html", page, first, second)
    assert (done.returncode, page.read_text()) == (1, "notes")
    assert "is not an HTML page, so it is not replaced" in done.stderr
    done = call("inspect", "--html", tmp_path / "nowhere" / "page.html", first)
    assert (done.returncode, done.stdout) == (1, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "page.html", "second"]


def test_without_plotly(pair, tmp_path, monkeypatch, call):
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    for arguments in (["inspect", pair[0]], ["diff", *pair]):
        done = call(*arguments, "--html", tmp_path / "page.html")
        assert (done.returncode, done.stdout) == (1, "")
        assert "need plotly, which is not installed. Install jaxckpt with its extra 'html'" in done.stderr
    assert call("inspect", pair[0]).returncode == 0


def test_names_are_only_text(pair, tmp_path, call):
    page = tmp_path / "page.html"
    for arguments in (["inspect", pair[0]], ["diff", *pair]):
        call(*arguments, "--html", page)
        text = page.read_text()
        body = text.partition("</head>")[2]
        assert "onerror=" in body
        assert not re.search(r"<img|<script>document|'owned'[^&]*<", body)
        assert body.count("<script") == body.count("</script>")
        assert "\u202e" not in text
        assert "http-equiv" in text


@needs_chromium
@pytest.mark.slow
def test_a_browser_shows_them(pair, tmp_path, call):
    page = tmp_path / "page.html"
    call("inspect", "--html", page, pair[0])
    document, complaints = rendered(page, tmp_path / "profile")
    assert complaints == []
    assert "<title>inspect " in document
    # A treemap, the statistics, and a picture for each of the two layouts that are divided over devices.
    assert len(set(re.findall(r'<div id="(figure-\d+)"', document))) == 3
    assert document.count('class="main-svg"') >= 3
    assert "layers" in document
    call("diff", "--html", page, *pair)
    document, complaints = rendered(page, tmp_path / "profile")
    assert complaints == []
    assert "<title>diff of two checkpoints" in document
    assert "model/layers/*/b" in document
    assert len(set(re.findall(r'<div id="(figure-\d+)"', document))) == 2


@needs_chromium
@pytest.mark.slow
def test_labels_of_plotly_are_only_text(tmp_path):
    figure = graphs().Figure(graphs().Bar(x=[safe(EVIL), "b"], y=[1, 2], text=[safe(EVIL)] * 2, name=safe(EVIL)))
    figure.update_layout(title=safe(EVIL))
    page = tmp_path / "page.html"
    table = Table((EVIL, "n"), [(EVIL, "1")], (1,), EVIL)
    write_page(str(page), EVIL, EVIL, [Section(EVIL, EVIL, [figure], [table])])
    document, complaints = rendered(page, tmp_path / "profile")
    assert complaints == []
    assert "<title>&lt;/script&gt;" in document
    assert "<img" not in document
    # Seven times on the page, and in the title, an axis and bars of the figure.
    assert document.count("document.title='owned'&lt;/script&gt;") >= 9


def test_strips_of_layers():
    names = [
        "model/layers/0/w",
        "model/layers/10/w",
        "model/layers/0/b",
        "opt/0/mu/block_1/w",
        "opt/0/mu/block_2/w",
        "step",
    ]
    strips, others = diff_page.strips_of(names)
    assert strips == {
        "model/layers/*/w": {0: "model/layers/0/w", 10: "model/layers/10/w"},
        "opt/0/mu/block_*/w": {1: "opt/0/mu/block_1/w", 2: "opt/0/mu/block_2/w"},
    }
    assert sorted(others) == ["model/layers/0/b", "step"]


def test_where_parts_of_arrays_lay():
    note = {
        "sharding_type": "NamedSharding",
        "shape": [2, 2],
        "axis_names": ["x", "y"],
        "partition_spec": [["x", "y"], None],
    }

    def leaf(**changes):
        return LeafMetadata("w", "jax.Array", (8, 4), np.dtype(np.float32), 128, json.dumps({**note, **changes}), None)

    mesh = shardings.mesh_of(leaf())
    assert str(mesh) == "NamedSharding(x=2, y=2; PartitionSpec(('x', 'y'), None))"
    assert [mesh.parts(axis) for axis in range(2)] == [4, 1]
    assert list(mesh.places([0, 1])) == [(0, (0, 0)), (1, (1, 0)), (2, (2, 0)), (3, (3, 0))]
    replicated = shardings.mesh_of(leaf(partition_spec=["y"]))
    assert list(replicated.places([0])) == [(0, (0,)), (1, (1,)), (2, (0,)), (3, (1,))]
    for wrong in (
        {"shape": [2]},
        {"shape": [1 << 30, 4]},
        {"partition_spec": ["z"]},
        {"partition_spec": 3},
        {"axis_names": [1, 2]},
    ):
        assert shardings.mesh_of(leaf(**wrong)) is None
        assert shardings.described(leaf(**wrong))


@pytest.mark.slow
def test_most_commands_import_neither_rich_nor_plotly(pair):
    script = (
        "import sys, jaxckpt.cli\n"
        f"assert jaxckpt.cli.main(['inspect', {pair[0]!r}]) == 0\n"
        "print(sorted({'rich', 'plotly', 'shtab'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
