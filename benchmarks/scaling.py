"""Memory, FLOPs and time of a training step against the grid's size, for all networks: a table and a plot.

python benchmarks/scaling.py [--sizes 32 64 128 256] [--precision bf16] [--throughput "50 TFLOP/s"] [--figure FILE] [--json FILE]

Memory and FLOPs are planned (drr2ct plan); radiographs have twice as many pixels along an axis as the volume has
voxels. The time is FLOPs over a throughput, measured for each network on this machine unless it is given.
"""  # noqa: E501

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from drr2ct.networks import list_networks
from drr2ct.pipeline.planning.fitting import measure_throughput, parse_rate
from drr2ct.pipeline.planning.plan import Settings, plan_network
from drr2ct.pipeline.running.startup import use_large_pages
from drr2ct.transforms.files import write_json


def plot(rows: list[dict], path: Path) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    quantities = (("step_peak_gib", "peak, GiB"), ("step_tflop", "TFLOP"), ("step_seconds", "time, s"))
    for axes, (key, label) in zip(figure.subplots(1, 3), quantities, strict=True):
        for network in dict.fromkeys(row["network"] for row in rows):
            points = [row for row in rows if row["network"] == network]
            style = "-o" if network.startswith("cascade") else "--s"
            axes.loglog([p["size"] for p in points], [p[key] for p in points], style, label=network, base=2)
        sizes = sorted({row["size"] for row in rows})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set(xlabel="N, voxels along an axis", ylabel=f"training step, {label}")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    use_large_pages()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list_networks())
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--throughput", help="such as '50 TFLOP/s'; measured by default")
    parser.add_argument("--figure", type=Path, help="write the plot to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    console, rows = Console(), []
    columns = ("network", "N", "peak, GiB", "TFLOP", "s")
    table = Table(title=f"training step, batch 1, {arguments.precision}")
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    for network in arguments.networks:
        with console.status(f"{network}: tracing"):
            settings = [Settings(network, 1, arguments.precision, size=n, detector=2 * n) for n in arguments.sizes]
            plans = [plan_network(each) for each in settings]
            given = arguments.throughput
            rate = parse_rate(given) if given else measure_throughput(settings[-1])
        for size, plan in zip(arguments.sizes, plans, strict=True):
            peak, flop = plan.step_peak_bytes / 2**30, plan.step_flops / 1e12
            seconds = plan.step_flops / rate
            table.add_row(network, str(size), f"{peak:.3f}", f"{flop:.4f}", f"{seconds:.3g}")
            row = {"network": network, "size": size, "step_peak_gib": peak, "step_tflop": flop}
            rows.append({**row, "step_seconds": seconds, "flop_per_second": rate})
    console.print(table)
    if arguments.figure:
        plot(rows, arguments.figure)
    if arguments.json:
        write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
