"""How arrays lay on the mesh of devices, as pictures: a part of the page of ``jaxckpt inspect --html``."""

from collections.abc import Sequence
from typing import Any

from jaxckpt._lib.output import count, human_bytes
from jaxckpt.cli import shardings
from jaxckpt.cli.page import FONT, Section, Table, graphs, safe, short
from jaxckpt.cli.shardings import Mesh
from jaxckpt.leaf_kinds.described import LeafMetadata

# Most pictures, and parts that are drawn along an axis.
_MOST_LAYOUTS = 12
_MOST_PARTS = 64


def sections(leaves: Sequence[LeafMetadata]) -> list[Section]:
    """Returns the section with the pictures; none if each array lay on one device.

    Args:
      leaves: the leaves of the checkpoint.
    """
    layouts = _layouts(leaves)
    if not layouts:
        return []
    more = f" The {_MOST_LAYOUTS} with most bytes of {len(layouts)}." if len(layouts) > _MOST_LAYOUTS else ""
    text = (
        "Each picture is an array, cut as it lay on the devices of the mesh. The numbers are positions of devices in the mesh: several "
        f"in one part are replicas.{more}"
    )
    figures = [_layout(mesh, shape, members) for (mesh, shape), members in layouts[:_MOST_LAYOUTS]]
    table = Table(
        ("division", "shape", "arrays", "bytes", "names"),
        [
            (
                str(mesh),
                str(shape),
                str(len(members)),
                human_bytes(sum(leaf.nbytes for leaf in members)),
                _names(members),
            )
            for (mesh, shape), members in layouts
        ],
        (2, 3),
        f"{count(len(layouts), 'layout')}",
        is_open=False,
    )
    return [Section("How arrays lay on the mesh", text, figures, [table])]


def _layouts(leaves: Sequence[LeafMetadata]) -> list[tuple[tuple[Mesh, tuple[int, ...]], list[LeafMetadata]]]:
    """Returns the divisions over several devices, with the arrays that have them, those of most bytes first."""
    found: dict[tuple[Mesh, tuple[int, ...]], list[LeafMetadata]] = {}
    for leaf in leaves:
        mesh = shardings.mesh_of(leaf)
        if mesh is not None and mesh.devices > 1 and 0 not in leaf.shape:
            found.setdefault((mesh, leaf.shape), []).append(leaf)
    return sorted(found.items(), key=lambda item: -sum(leaf.nbytes for leaf in item[1]))


def _layout(mesh: Mesh, shape: tuple[int, ...], members: Sequence[LeafMetadata]) -> Any:
    """Returns a picture of an array with the two axes that are divided most."""
    go = graphs()
    most = sorted(range(len(shape)), key=lambda axis: -mesh.parts(axis))[:2]
    # An array without a second axis is drawn as one row.
    axes = sorted(most)
    down, across = (axes[0], axes[1]) if len(axes) == 2 else (None, axes[0]) if axes else (None, None)
    rows = 1 if down is None else mesh.parts(down)
    columns = 1 if across is None else mesh.parts(across)
    holders: dict[tuple[int, int], list[int]] = {}
    for device, place in mesh.places([axis for axis in (down, across) if axis is not None]):
        row = place[0] if down is not None else 0
        column = place[-1] if across is not None else 0
        if row < _MOST_PARTS and column < _MOST_PARTS:
            holders.setdefault((row, column), []).append(device)
    height, width = min(rows, _MOST_PARTS), min(columns, _MOST_PARTS)
    colour = [[holders[row, column][0] for column in range(width)] for row in range(height)]
    words = [[_devices(holders[row, column], width) for column in range(width)] for row in range(height)]
    hover = [
        [
            f"part {row}, {column}<br>devices {safe(', '.join(map(str, holders[row, column][:64])))}"
            for column in range(width)
        ]
        for row in range(height)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=colour,
            text=words,
            customdata=hover,
            texttemplate="%{text}" if height * width <= 128 else "",
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=[[0, "#dbe7fb"], [0.5, "#8fb4ec"], [1, "#3f7ad6"]] if mesh.devices > 1 else "Blues",
            showscale=False,
            xgap=3,
            ygap=3,
        )
    )

    def title(axis: int | None) -> str:
        if axis is None:
            return ""
        names = mesh.spec[axis] if axis < len(mesh.spec) else ()
        divided = f"÷ {' × '.join(f'{name} ({dict(mesh.axes)[name]})' for name in names)}" if names else "whole"
        return f"{safe(f'axis {axis}: {shape[axis]:,}')}<br>{safe(divided)}"

    size = human_bytes(sum(leaf.nbytes for leaf in members))
    heading = f"{short(mesh.partition_spec.removeprefix('PartitionSpec'), 40)} of {shape}"
    figure.update_xaxes(
        title=title(across), showticklabels=False, side="bottom", fixedrange=True, showgrid=False, zeroline=False
    )
    figure.update_yaxes(
        title=title(down), showticklabels=False, autorange="reversed", fixedrange=True, showgrid=False, zeroline=False
    )
    figure.update_layout(
        title={
            "text": f"<b>{safe(heading)}</b><br>{safe(count(len(members), 'array'))}, {size}: {safe(short(members[0].name, 34))}"
        },
        title_font_size=12,
        title_x=0.02,
        width=370,
        height=250 if height > 1 else 190,
        margin={"l": 58, "r": 10, "t": 56, "b": 48},
        font={**FONT, "size": 11},
        plot_bgcolor="white",
    )
    return figure


def _devices(devices: Sequence[int], columns: int) -> str:
    """Returns the numbers of devices, as many as fit into a part: ``0-3``, ``0, 4, ...``."""
    if len(devices) > 1 and [*devices] == [*range(devices[0], devices[-1] + 1)]:
        return f"{devices[0]}-{devices[-1]}"
    most = max(1, 8 // max(1, columns // 2))
    return ", ".join(map(str, devices[:most])) + (", ..." if len(devices) > most else "")


def _names(members: Sequence[LeafMetadata]) -> str:
    return ", ".join(leaf.name for leaf in members[:8]) + (", ..." if len(members) > 8 else "")
