"""The parts of ``gpu.py``, each of which that runs in a process of its own: what they find is printed as JSON lines."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drr2ct.pipeline.running.startup import start_lightly

start_lightly()  # as the command does: a dozen processes would import all of MONAI, ten seconds each on a slow machine

import numpy as np
import torch
from gpu import MARK
from monai.utils import set_determinism
from torch import Tensor

from drr2ct.networks import list_networks
from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.planning.plan import Settings, plan_network
from drr2ct.pipeline.planning.tracing import TrainingStep, bundle_optimizer
from drr2ct.pipeline.running.precision import choose_precision
from drr2ct.transforms.attenuation import hu_to_attenuation
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
from drr2ct.transforms.validation import InputError

DRR_TOLERANCE = 0.01
"""Mean difference over mean signal within which two ways to render agree."""
PLAN_MARGIN = 0.10
"""By which CUDA's peak may pass the plan: what ``drr2ct plan`` adds before it says that something fits."""
MEASURE_SECONDS = 3.0
PACKAGES = ("torch", "monai", "numpy", "triton", "nanodrr", "pytorch-ignite", "nibabel", "itk-rtk")
SMALL: dict[str, Any] = {
    "network_name": "cascade64",
    "size": 16,
    "detector_size": 32,
    "num_workers": 0,
    "network_def#stages": [
        {"channels": 16, "scale": 1, "growth": 8, "layers": 2, "lift_channels": 8},
        {"channels": 8, "growth": 4, "layers": 2, "lift_channels": 4},
    ],
    "network_def#encoder_channels": [4, 8],
    "network_def#encoder_norm_groups": [2],
}
"""Overrides of train.yaml for trainings that are compared, not waited for."""


def found(what: str, verdict: str | bool, says: str, **figures: Any) -> None:
    """Hand a result to ``gpu.py``; a verdict that is true or false is ``ok`` or ``failed``."""
    if isinstance(verdict, bool):
        verdict = "ok" if verdict else "failed"
    print(MARK + json.dumps({"what": what, "verdict": verdict, "says": says, "figures": figures}), flush=True)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], device: str, least: int = 3, seconds: float = MEASURE_SECONDS) -> list[float]:
    """Seconds of each run, of at least so many and until so much time has passed."""
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < 50):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times


# machine


def machine(device: str) -> None:
    """Say what this runs on; fail if there is no such device."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        cpu = names[0] if names else cpu
    versions: dict[str, Any] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    versions["cudnn"] = torch.backends.cudnn.version()
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpus = []
    if device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("torch finds no CUDA device; give --device cpu to try the program itself.")
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = [{"name": p.name, "bytes": p.total_memory, "capability": f"{p.major}.{p.minor}"} for p in properties]
    cores = len(os.sched_getaffinity(0))
    says = ", ".join([*(f"{g['name']} ({g['bytes'] / 2**30:.0f} GiB)" for g in gpus), f"{cpu}, {cores} cores"])
    figures = {"cpu": cpu, "cores": cores, "gpus": gpus, "versions": versions, "networks": list_networks()}
    found("machine", "measured", f"{says}, torch {versions['torch']}", **figures)


# drr


def phantom(size: int) -> tuple[Tensor, np.ndarray]:
    """A crude chest in HU (1, I, J, K) on voxels that differ by axis, and its affine: turned, mirrored, off centre."""
    shape = (size, (7 * size) // 8, (3 * size) // 4)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = torch.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 30.0, -1000.0)
    for side in (-0.45, 0.45):
        hu[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 0.8) ** 2 < 1] = -850
    hu[((x + 0.2) / 0.28) ** 2 + ((y - 0.2) / 0.3) ** 2 + ((z + 0.2) / 0.4) ** 2 < 1] = 60
    hu[(x / 0.12) ** 2 + ((y + 0.5) / 0.12) ** 2 < 1] = 500
    angle = math.radians(7.0)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-320 / shape[0], 270 / shape[1], 300 / shape[2]])
    affine[:3, 3] = [150, -120, -160]
    return hu[None], affine


def cast_rays(hu: Tensor, affine: np.ndarray, views: Sequence[View], step_mm: float) -> Tensor:
    """Line integrals (views, rows, columns) by the definition alone: sums of interpolated samples along each ray.

    Nothing of either engine is used: positions are worked out in float64, the eight neighbours of each sample are read
    and weighted here, and what lies outside the scan is air. Slow, for comparison.
    """
    attenuation = hu_to_attenuation(hu[0]).double()
    shape = torch.tensor(attenuation.shape, device=hu.device)
    centre = affine[:3, :3] @ ((np.array(attenuation.shape) - 1) / 2) + affine[:3, 3]
    to_index = torch.tensor(np.linalg.inv(affine), device=hu.device)
    radius = np.linalg.norm(affine[:3, :3] @ np.diag(np.array(attenuation.shape) + 1), axis=0)
    radius = float(np.linalg.norm(radius)) / 2
    count = math.ceil(2 * radius / step_mm)
    length = 2 * radius / count
    images = []
    for view in views:
        u, v = view.detector_axes
        source = view.source_position
        rows, columns = view.detector_size
        along_u = (np.arange(columns) - (columns - 1) / 2) * view.pixel_pitch_mm
        along_v = (np.arange(rows) - (rows - 1) / 2) * view.pixel_pitch_mm
        middle = source - source / view.source_to_isocentre_mm * view.source_to_detector_mm
        pixels = middle + along_v[:, None, None] * v + along_u[None, :, None] * u
        rays = torch.tensor(pixels - source, device=hu.device).reshape(-1, 3)
        rays = rays / rays.norm(dim=1, keepdim=True)
        start = torch.tensor(source, device=hu.device)
        nearest = -(rays @ start)  # along each ray, where it passes the isocentre
        image = torch.zeros(len(rays), dtype=torch.float64, device=hu.device)
        for k in range(count):
            points = start + rays * (nearest - radius + (k + 0.5) * length)[:, None] + torch.tensor(centre).to(rays)
            index = points @ to_index[:3, :3].T + to_index[:3, 3]
            low = index.floor().long()
            weight = index - low
            for corner in range(8):
                offset = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=hu.device)
                neighbour = low + offset
                part = torch.where(offset == 1, weight, 1 - weight).prod(dim=1)
                inside = ((neighbour >= 0) & (neighbour < shape)).all(dim=1)
                i, j, k_ = neighbour.clamp(min=0).minimum(shape - 1).unbind(1)
                image += torch.where(inside, part * attenuation[i, j, k_], 0.0) * length
        images.append(image.reshape(rows, columns))
    return torch.stack(images).float()


def difference(first: Tensor, second: Tensor) -> float:
    """Mean absolute difference over mean signal."""
    first, second = first.detach().cpu().double(), second.detach().cpu().double()
    return float((first - second).abs().mean() / second.abs().mean())


def drr(device: str, size: int | None) -> None:
    """Agreement and time of the radiographs."""
    small = min(size or 64, 64)
    geometry = BiplanarGeometry.from_angles(VolumeGrid(small), detector_size=small)
    hu, affine = phantom(small)
    there = hu.to(device)

    def image(volume: Tensor, engine: str) -> Tensor:
        return render_drr(volume, geometry, affine, engine=engine)

    made = image(there, "nanodrr")
    reference = cast_rays(there, affine, geometry.views, step_mm=min(2.0, 160 / small))
    others = {"an independent ray caster": reference}
    if device == "cuda":
        others["nanodrr on the CPU"] = image(hu, "nanodrr")
    if importlib.util.find_spec("itk") is not None:
        others["RTK on the CPU"] = image(hu, "rtk")
    for name, other in others.items():
        error = difference(made, other)
        says = f"mean difference {100 * error:.4f} % of the mean signal"
        found(f"DRRs against {name}", error <= DRR_TOLERANCE, says, relative_difference=error)

    weights = torch.rand(made.shape, generator=torch.Generator().manual_seed(0))

    def gradient(volume: Tensor) -> Tensor:
        leaf = volume.clone().requires_grad_()
        (image(leaf, "nanodrr") * weights.to(volume.device)).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    if device == "cuda":
        error = difference(gradient(there), gradient(hu))
        name = "gradient against the CPU's"
    else:
        # a step along a direction changes the sum as the gradient says
        direction = torch.randn(hu.shape, generator=torch.Generator().manual_seed(1)) * (hu > -900)
        expected = (gradient(hu) * direction).sum().double()
        changed = [(image(hu + sign * direction, "nanodrr").double() * weights).sum() for sign in (1, -1)]
        error = float(abs((changed[0] - changed[1]) / 2 - expected) / abs(expected))
        name = "gradient against a small step"
    found(name, error <= DRR_TOLERANCE, f"differs by {100 * error:.4f} %", relative_difference=error)

    grid, detector = size or 256, 2 * (size or 256)
    full = BiplanarGeometry.from_angles(VolumeGrid(grid), detector_size=detector)
    hu, affine = phantom(grid)
    there = hu.to(device)
    render_drr(there, full, affine, engine="nanodrr")
    times = timed(lambda: render_drr(there, full, affine, engine="nanodrr"), device)
    says = (
        f"{1000 * statistics.median(times):.1f} ms for two views of {detector}² from {'×'.join(map(str, hu.shape[1:]))}"
    )
    found("time of DRRs", "measured", says, seconds=times, detector=detector, shape=list(hu.shape[1:]))


# network


def network(name: str, device: str, size: int | None, compiled: bool) -> None:
    """Time and memory of steps and reconstructions of one network."""
    set_determinism(0)  # as every run has it: cuDNN then chooses among fewer algorithms
    # a CPU has no loss scaling, and few compute in bf16
    precisions = ["bf16", "fp16"] if device == "cuda" else [choose_precision(torch.device(device))]
    for precision in precisions:
        settings = Settings(name, precision=precision, size=size, detector=2 * size if size else None)
        plan = plan_network(settings)
        try:
            _measure_network(settings, plan, device, compiled)
        except torch.cuda.OutOfMemoryError:
            total = torch.cuda.get_device_properties(0).total_memory
            expected = plan.step_peak_bytes > total
            says = f"out of memory; {plan.step_peak_bytes / 2**30:.1f} of {total / 2**30:.1f} GiB by plan"
            found(f"step, {precision}", "skipped" if expected else "failed", says, planned_bytes=plan.step_peak_bytes)
        if device == "cuda":
            torch.cuda.empty_cache()


def _measure_network(settings: Settings, plan: Any, device: str, compiled: bool) -> None:
    precision = settings.precision
    optimizer = bundle_optimizer(settings.network)
    step, loss = TrainingStep(settings.config(), settings.batch, precision, optimizer, device), WeightedLoss()
    scaler = torch.amp.GradScaler(device) if precision == "fp16" else None
    if compiled:
        step.network.compile()
    step.settle()
    start = time.perf_counter()
    for _ in range(2):
        step.run(loss, scaler=scaler)
    synchronize(device)
    first = time.perf_counter() - start
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = timed(lambda: step.run(loss, scaler=scaler), device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    finite = bool(torch.isfinite(step.infer()).all())
    figures = {"seconds": times, "first_two_seconds": first, "peak_bytes": peak, "planned_bytes": plan.step_peak_bytes}
    says = f"{1000 * statistics.median(times):.0f} ms, the first two {first:.1f} s"
    found(
        f"step, {precision}", "measured" if finite else "failed", says + ("" if finite else ", not finite"), **figures
    )
    if peak is not None and not compiled:  # the plan is of the network as it stands
        _against_plan(f"memory of a step, {precision}", peak, plan.step_peak_bytes)

    for parameter in step.network.parameters():  # what only a training holds
        parameter.grad = None
    step.optimizer.state.clear()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step.infer()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    times = timed(step.infer, device)
    figures = {"seconds": times, "peak_bytes": peak, "planned_bytes": plan.forward_peak_bytes}
    found(f"reconstruction, {precision}", "measured", f"{1000 * statistics.median(times):.0f} ms", **figures)
    if peak is not None and not compiled:
        _against_plan(f"memory of a reconstruction, {precision}", peak, plan.forward_peak_bytes)


def _against_plan(what: str, peak: int, planned: int) -> None:
    ratio = peak / planned
    says = f"peak {peak / 2**30:.2f} GiB, planned {planned / 2**30:.2f} ({100 * (ratio - 1):+.1f} %)"
    found(what, ratio <= 1 + PLAN_MARGIN, says, peak_bytes=peak, planned_bytes=planned, ratio=ratio)


# resume and processes: trainings by the bundle


def make_patients(folder: Path, count: int) -> None:
    """CTs and stored radiographs, so that nothing is rendered while training."""
    import nibabel as nib

    from drr2ct.transforms.radiographs.write import write_radiograph

    geometry = BiplanarGeometry.from_angles(VolumeGrid(SMALL["size"]), detector_size=SMALL["detector_size"])
    geometry.save(folder / "geometry.json")
    rng = np.random.default_rng(0)
    for number in range(count):
        hu, affine = phantom(24)
        noisy = (hu[0].numpy() + rng.normal(0, 20, hu.shape[1:]) * (hu[0].numpy() > -900)).astype(np.float32)
        place = folder / f"p{number}"
        place.mkdir()
        nib.save(nib.Nifti1Image(noisy, affine), place / f"p{number}.nii.gz")
        images = cast_rays(torch.from_numpy(noisy)[None], affine, geometry.views, step_mm=6.0)
        for view, image in zip(geometry.views, images, strict=True):
            write_radiograph(place / f"p{number}_{view.name}_drr.nii.gz", image, pitch_mm=view.pixel_pitch_mm)


def train(settings: str, kill_at: int) -> None:
    """A training by the bundle, which kills itself before so many steps if that is above 0."""
    from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
    from drr2ct.pipeline.training.muon import Muon

    overrides = json.loads(settings)
    if kill_at:
        original, left = Muon.step, [kill_at]

        def step(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        Muon.step = step  # type: ignore[method-assign]
    overlays = ["multi_gpu_train"] if "RANK" in os.environ else []
    run_bundle([bundle_file(f"configs/{name}.yaml") for name in ("train", *overlays)], overrides)


def started(command: list[str], expected: int = 0, **environment: str) -> None:
    variables = {**os.environ, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != expected:
        sys.stderr.write(done.stderr[-3000:])
        raise SystemExit(f"a training ended with status {done.returncode} instead of {expected}")


def training(settings: dict[str, Any], kill_at: int = 0) -> None:
    command = [sys.executable, __file__, "train", json.dumps(settings), str(kill_at)]
    started(command, -signal.SIGKILL if kill_at else 0)


def state(run: Path) -> dict[str, Any]:
    from drr2ct.pipeline.checkpoints.files import read_checkpoint

    return read_checkpoint(run / "checkpoints" / "last.pt")


def worst(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest difference between the weights of two checkpoints."""
    return max(float((value.double() - second[name].double()).abs().max()) for name, value in first.items())


def resume(device: str) -> None:
    """Kill a training, go on, and compare with one that nobody disturbed; if they differ, how far two such do."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = place / "data"
        data.mkdir()
        make_patients(data, 6)
        common = {**SMALL, "dataset_dir": str(data), "save_interval": 0.0, "batch_size": 1}
        common |= {"train#trainer#max_epochs": 3, "cache_dir": str(place / "cache")}

        def run(name: str, *kills: int) -> dict[str, Any]:
            for kill_at in kills:
                training({**common, "output_dir": str(place / name)}, kill_at)
            return state(place / name)

        first, killed = run("first", 0), run("killed", 5, 0)
        exact = worst(killed["network"], first["network"])
        noise = worst(run("second", 0)["network"], first["network"]) if exact else 0.0
        steps = [checkpoint["trainer"]["iteration"] for checkpoint in (first, killed)]
        # sums in varying order (atomics of CUDA) let two undisturbed trainings differ
        same = exact == 0 or exact <= 10 * noise
        says = "no weight differs"
        if exact:
            says = f"weights differ by {exact:.1e}, those of two undisturbed trainings by {noise:.1e}"
        found("killed and resumed", same and steps[0] == steps[1], says, resumed=exact, undisturbed=noise, steps=steps)


def processes(device: str) -> None:
    """One process with a batch of two against two with one each."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        found("two processes", "skipped", "there is one GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = place / "data"
        data.mkdir()
        make_patients(data, 8)
        common = {**SMALL, "dataset_dir": str(data), "cache_dir": str(place / "cache"), "precision": "fp32"}
        # with a large eps AdamW's step is proportional to the gradient, and does not blow up its rounding errors
        common |= {"optimizer#_target_": "torch.optim.AdamW", "learning_rate": 0.03, "optimizer#eps": 0.1}
        common |= {"split_fractions": [0.5, 0.375, 0.125]}
        common |= {"train#trainer#max_epochs": 2}
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # convolutions in 10 bits would hide a difference
        training({**common, "batch_size": 2, "output_dir": str(place / "one")})
        settings = json.dumps({**common, "batch_size": 1, "output_dir": str(place / "two")})
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        started([*torchrun, __file__, "train", settings, "0"], OMP_NUM_THREADS="1")
        error = worst(state(place / "one")["network"], state(place / "two")["network"])
        backend = "NCCL" if device == "cuda" else "gloo"
        says = f"weights differ by {error:.1e} from those of one process ({backend})"
        found("two processes", error < 1e-4, says, difference=error, backend=backend)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int)
    arguments = parser.parse_args()
    part, words, device, size = arguments.part, arguments.words, arguments.device, arguments.size
    try:
        if part == "train":
            train(words[0], int(words[1]))
        elif part in ("network", "compiled"):
            network(words[0], device, size, compiled=part == "compiled")
        elif part == "drr":
            drr(device, size)
        else:
            {"machine": machine, "resume": resume, "processes": processes}[part](device)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed; this part needs it") from error
    except InputError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
