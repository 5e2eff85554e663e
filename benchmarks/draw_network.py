"""Draw a network from its configuration.

python benchmarks/draw_network.py cascade256 docs/figures/cascade256.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle

from drr2ct.networks import CascadeConfig, network_config
from drr2ct.networks.encoder import pyramid_level

FLAT, DEEP, CALM, TEXT = "#d7e3f4", "#f6d9b8", "#e6e6e6", "#222222"
STEP = 3.0  # between stages
MAPS, VOLUMES, NOTES = 3.5, 0.0, -0.95  # heights


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#555555", connectionstyle=style, lw=1.1)
    )


def cube(axes: Axes, x: float, y: float, edge: float, colour: str) -> None:
    """A cube whose front face is centred on (x, y)."""
    h, d = edge / 2, edge * 0.3
    front = [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    top = [front[3], front[2], (x + h + d, y + h + d), (x - h + d, y + h + d)]
    side = [front[1], (x + h + d, y - h + d), (x + h + d, y + h + d), front[2]]
    for face, shade in ((front, 1.0), (top, 0.75), (side, 0.55)):
        axes.add_patch(Polygon(face, facecolor=colour, edgecolor="#666666", lw=0.8, alpha=shade))


def maps(axes: Axes, x: float, y: float, edge: float, count: int) -> None:
    for i in reversed(range(count)):
        corner = (x - edge / 2 + 0.14 * i, y - edge / 2 + 0.14 * i)
        axes.add_patch(Rectangle(corner, edge, edge, facecolor=FLAT, edgecolor="#666666", lw=0.8))


def note(axes: Axes, x: float, y: float, text: str, size: float = 8.5, **how: str) -> None:
    axes.text(
        x, y, text, ha=how.get("ha", "center"), va=how.get("va", "top"), fontsize=size, color=TEXT, linespacing=1.35
    )


def draw(name: str, config: CascadeConfig) -> Figure:
    geometric = config.lift == "backprojection"
    rows, columns = config.geometry.detector_size
    views, grid = config.geometry.views, config.geometry.grid
    count = len(config.stages)
    right, bottom = STEP * (count + 1) + 1.9, -3.5 if config.skips else -2.3
    figure = Figure(figsize=(0.72 * (right + 1.5), 0.72 * (5.6 - bottom)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1.5, right), ylim=(bottom, 5.6))
    axes.axis("off")

    def edge(size: int) -> float:
        doublings = (size / config.volume_size).__trunc__().bit_length() - 1
        return 0.62 * 1.22**doublings

    # the radiographs, and what is made of them
    maps(axes, 0, MAPS, 1.3, len(views))
    note(axes, 0, MAPS + 1.3, f"{len(views)} radiographs\n{rows}×{columns}", va="center")
    note(axes, 0, MAPS - 0.85, ", ".join(view.name for view in views))
    first, last = STEP, STEP * count
    axes.add_patch(
        Rectangle((first - 1.2, MAPS - 1.2), last - first + 2.6, 2.4, facecolor="none", edgecolor="#9ab", ls="--", lw=1)
    )
    how = "feature pyramid, shared by the views" if geometric else "encoder of the stacked views"
    note(axes, (first + last) / 2 + 0.1, MAPS + 1.42, how, 9, va="center")
    arrow(axes, (0.95, MAPS), (first - 1.2, MAPS))

    # the volumes
    cube(axes, 0, VOLUMES, edge(config.volume_size), CALM)
    note(axes, 0, NOTES, f"learned volume\n{config.volume_size}³ × {config.volume_channels}")
    before = edge(config.volume_size)
    for i, (stage, size) in enumerate(zip(config.stages, config.stage_sizes, strict=True)):
        x = STEP * (i + 1)
        if geometric:
            level = pyramid_level(config.geometry, size)
            side = f"{-(-rows // 2**level)}²"
            channels = f"{len(views)} × {stage.lift_channels}"
        else:
            side, channels = f"{-(-rows // 2 ** len(config.encoder_channels))}²", str(config.encoder_channels[-1])
        shown = min(edge(size), 1.35) if geometric else 0.8
        maps(axes, x, MAPS, shown, len(views) if geometric else 1)
        note(axes, x, MAPS - 0.78, f"{side}, {channels} channels", 7.5)
        half = edge(size) / 2
        top = VOLUMES + half + 0.3 * edge(size) + 0.05
        arrow(axes, (x, MAPS - 1.2), (x, top))
        lift = "lift along\nthe rays" if geometric else "repeat along\none axis"
        note(axes, x + 0.12, (MAPS - 1.2 + top) / 2, lift, 7.5, ha="left", va="center")
        cube(axes, x, VOLUMES, edge(size), DEEP)
        arrow(axes, (x - STEP + before / 2 + 0.3 * before, VOLUMES), (x - half, VOLUMES))
        if stage.scale > 1:
            note(axes, x - STEP / 2 + 0.12, VOLUMES + 0.32, f"×{stage.scale}", 8)
        refining = [*["RDB"][: stage.blocks], *["U-shape"][: stage.halvings]]
        order = ["fuse", *refining] if config.fuse == "before" else [*refining, "fuse"]
        lines = [f"stage {i + 1}: {size}³ × {stage.channels}", " → ".join(order)]
        if stage.blocks or not stage.halvings:
            rdb = f"{stage.blocks} × RDB, {stage.layers} layers of {stage.growth}"
            lines.append(rdb if stage.blocks else "no RDB")
        if stage.halvings:
            lines += [f"{stage.halvings} halvings", "sees the volume so far, and", "what its radiographs lack"]
        if i == 0 and config.transformer_layers:
            lines.append(f"{config.transformer_layers} transformer layers")
        note(axes, x, NOTES, "\n".join(lines))
        before = edge(size)

    # what turns the last stage into the volume
    x = STEP * (count + 1)
    half = edge(grid.size) / 2
    arrow(axes, (x - STEP + 1.3 * before / 2 + 0.15 * before, VOLUMES), (x - half, VOLUMES))
    cube(axes, x, VOLUMES, edge(grid.size), CALM)
    lines = []
    if config.skips:
        for skip in config.skips:
            arrow(axes, (STEP * (skip.stage + 1), NOTES - 1.1), (x, NOTES - 1.45), 0.12)
        joined = ", ".join(str(skip.stage + 1) for skip in config.skips)
        lines.append(f"joined by {joined}: {config.skip_fusion_channels}")
    if config.refinement_blocks:
        lines.append(f"{config.refinement_blocks} × RDB")
    if config.refinement:
        lines.append("refine: " + " → ".join(str(channels) for channels, _ in config.refinement))
    lines.append(f"sub-voxel head, ×{config.head_scale}" if config.head_scale > 1 else "1³ convolution")
    note(axes, x, NOTES, "\n".join([f"the CT: {grid.size}³", *lines]))
    note(axes, (right - 1.5) / 2, 5.5, f"{name}: a cube of {grid.fov_mm:g} mm from {len(views)} views", 11)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    matplotlib.rcParams.update({"svg.hashsalt": "drr2ct", "svg.fonttype": "path"})
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(arguments.network, network_config(arguments.network))
    metadata = {"Date": None} if arguments.file.suffix == ".svg" else None
    figure.savefig(arguments.file, dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
