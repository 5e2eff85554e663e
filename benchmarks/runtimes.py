"""One network's forward pass on the CPU in PyTorch and in other runtimes, as ratios, results checked.

python benchmarks/runtimes.py [--network cascade256] [--interval] [--repetitions 3] [--compile] [--json FILE]

What is not installed is left out and named. Runtimes take turns, so that what else the machine does falls on all; the
smallest processor time of all threads counts. Weights are random.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.checkpoints.network_export import TOLERANCE, export_network
from drr2ct.pipeline.running.startup import use_large_pages
from drr2ct.transforms.files import write_json

Runtime = Callable[[Tensor], Tensor]


def onnx_runtime(path: Path, threads: int) -> Runtime:
    """ONNX Runtime's own kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(np.asarray(session.run(["pred"], {"image": image.numpy()})[0]))


def openvino(path: Path, threads: int, precision: str) -> Runtime:
    """OpenVINO, asked for a precision; it keeps to float32 where the processor has no other."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(str(path), "CPU", settings)
    return lambda image: torch.from_numpy(compiled(image.numpy())[0])


def main() -> None:
    use_large_pages()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="cascade256")
    parser.add_argument("--interval", action="store_true", help="the network with bounds, as the shipped ones are")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which compiles for minutes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    console = Console()
    threads = torch.get_num_threads()
    network = create_network(arguments.network, interval=arguments.interval).eval()
    with torch.no_grad():
        for output in network.outputs[1:]:  # they begin at zero, and would hide what differs before them
            for parameter in output.parameters():
                parameter.normal_(std=0.01)
    last = create_network(arguments.network, interval=arguments.interval, channels_last=True).eval()
    last.load_state_dict(network.state_dict())
    views, (rows, columns) = len(network.config.geometry.views), network.config.geometry.detector_size
    image = torch.rand(1, views, rows, columns, generator=torch.Generator().manual_seed(0))
    runtimes: dict[str, Runtime] = {"PyTorch": network, "PyTorch, channels last": last}
    if arguments.compile:
        runtimes["torch.compile"] = torch.compile(network)
    with tempfile.TemporaryDirectory() as folder:
        names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "onnxscript": "export to ONNX"}
        there = {name for name in names if importlib.util.find_spec(name)}
        for name in names.keys() - there:
            console.print(f"left out: {names[name]}, which is not installed")
        if {"onnxscript", "onnxruntime"} <= there:
            path = Path(folder) / "network.onnx"
            content = {"network": network.state_dict()}
            content["description"] = describe(network, arguments.network, "cube", {"training": []})
            write_checkpoint(Path(folder) / "checkpoint.pt", content)
            export_network(Path(folder) / "checkpoint.pt", path)
            runtimes["ONNX Runtime"] = onnx_runtime(path, threads)
            if "openvino" in there:
                runtimes |= {f"OpenVINO, {p} asked for": openvino(path, threads, p) for p in ("f32", "bf16")}
        seconds: dict[str, list[float]] = {name: [] for name in runtimes}
        differences: dict[str, float] = {}
        with torch.inference_mode():
            expected = network(image)
            for name, run in runtimes.items():  # also the first run, which prepares
                differences[name] = float((run(image) - expected).abs().max())
            for _ in range(arguments.repetitions):
                for name, run in runtimes.items():
                    began = time.process_time()
                    run(image)
                    seconds[name].append(time.process_time() - began)
    load = os.getloadavg()[0]
    bounds = " with bounds" if arguments.interval else ""
    title = f"{arguments.network}{bounds}, threads: {threads}, smallest of {arguments.repetitions} (load {load:.1f})"
    table = Table("runtime", "processor, s", "ratio", "largest difference", title=title, box=MARKDOWN)
    least = {name: min(values) for name, values in seconds.items()}
    for name, value in least.items():
        far = "" if differences[name] <= TOLERANCE else " (too much)"
        table.add_row(name, f"{value:.2f}", f"{value / least['PyTorch']:.2f}", f"{differences[name]:.1g}{far}")
    console.print(table)
    if arguments.json:
        write_json(arguments.json, {"load": load, "seconds": seconds, "differences": differences})


if __name__ == "__main__":
    main()
