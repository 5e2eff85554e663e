"""What each of several processes does in test_distributed.py; started by torchrun, writes what it found to a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.metrics import PSNRMetric
from monai.transforms import Compose, Transform
from torch.distributed.optim import ZeroRedundancyOptimizer

from drr2ct.networks import create_network
from drr2ct.networks.losses import WeightedLoss
from drr2ct.networks.ssim import SeparableSSIMMetric
from drr2ct.pipeline.data.cache import CachedDataset
from drr2ct.pipeline.data.loading import SeededSamples
from drr2ct.pipeline.running import distributed
from drr2ct.pipeline.running.precision import clip_gradients

SIZE, DETECTOR, STEPS, BATCH = 16, 24, 10, 2
SHARDED_STEPS = 2
PATIENTS = 5


def small_network(name: str = "cascade64", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    overrides: dict[str, Any] = {}
    if name == "cascade64":
        stage = {"channels": 8, "growth": 4, "layers": 2, "lift_channels": 4}
        overrides = {"stages": [{**stage, "scale": 1}, stage], "encoder_channels": [4, 8]}
        # the geometry of the back-projection is kept in single precision
        double = {"lift": "broadcast", "encoder_norm_groups": [2, 2]}
        overrides |= double if dtype == torch.float64 else {"encoder_norm_groups": [2]}
    if name == "direct128":  # narrower at its last stage: 17 million weights take a while
        stages = [{"channels": 64, "growth": 24, "layers": 4}, {"channels": 128}, {"channels": 64, "blocks": 2}]
        overrides = {"stages": stages, "refinement_blocks": 0}
    size = 8 if name == "direct128" else SIZE
    return create_network(name, size=size, detector_size=DETECTOR, **overrides).to(dtype)


def batch(step: int, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of all processes together."""
    generator = torch.Generator().manual_seed(step)
    count = 2 * BATCH
    return (
        torch.rand(count, 2, DETECTOR, DETECTOR, generator=generator),
        torch.rand(count, 1, size, size, size, generator=generator),
    )


def train(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: slice, steps: int = STEPS
) -> dict[str, torch.Tensor]:
    """Some steps on some rows of each batch; returns the gradients of the first."""
    dtype = next(network.parameters()).dtype
    size = getattr(network, "module", network).config.geometry.grid.size
    loss, first = WeightedLoss({"l1": 1.0, "ssim": 0.1} if size == SIZE else {"l1": 1.0}), {}
    for step in range(steps):
        image, label = (tensor.to(dtype) for tensor in batch(step, size))
        optimizer.zero_grad()
        loss(network(image[rows]), label[rows]).mean().backward()
        if step == 0:
            first = {name.removeprefix("module."): p.grad.clone() for name, p in network.named_parameters()}
        optimizer.step()
    return first


def adam(parameters: Any) -> torch.optim.Optimizer:
    return clip_gradients(torch.optim.AdamW(parameters, lr=1e-3), 1.0)


def sharded(parameters: Any) -> torch.optim.Optimizer:
    return clip_gradients(ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.AdamW, lr=1e-3), 1.0)


def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (PATIENTS, 1, SIZE, SIZE, SIZE)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def figures(count: int) -> dict[str, float]:
    """Mean metrics of the first ``count`` patients, each process evaluating its share."""
    made, true = predictions()
    data = Dataset([{"made": made[i], "true": true[i]} for i in range(count)])
    metrics = {"psnr": PSNRMetric(max_val=1.0), "ssim": SeparableSSIMMetric(spatial_dims=3, data_range=1.0)}
    for sample in DataLoader(data, batch_size=1, sampler=distributed.PatientShare(data)):
        for metric in metrics.values():
            metric(sample["made"], sample["true"])
    return {name: float(metric.aggregate()) for name, metric in metrics.items()}


class Noted(Transform):
    """Leaves a mark for each sample that is computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        with (Path(self.folder) / f"computed_by_{distributed.rank()}").open("a") as file:
            file.write(f"{item['patient']}\n")
        return {**item, "image": torch.full((8,), float(item["number"]))}


def main() -> None:
    folder = Path(sys.argv[1])
    device = distributed.local_device()
    distributed.start(device)
    rank = distributed.rank()
    rows = slice(rank, None, distributed.world_size())
    found: dict[str, Any] = {"rank": rank}

    network = small_network()
    found["gradients"] = train(distributed.parallel(network, device), adam(network.parameters()), rows, steps=1)
    network = small_network(dtype=torch.float64)
    train(distributed.parallel(network, device), adam(network.parameters()), rows)
    found["weights"] = network.state_dict()

    for name in ("direct128", "direct256"):
        network = small_network(name, torch.float64)
        optimizer = sharded(network.parameters())
        train(distributed.parallel(network, device), optimizer, rows, SHARDED_STEPS)
        # the moments that this process holds
        held = sum(v.numel() for state in optimizer.optim.state.values() for v in state.values() if v.ndim)
        optimizer.consolidate_state_dict(to=0)
        found[name] = {"weights": network.state_dict(), "held": held}
        if rank == 0:
            found[name]["optimizer"] = optimizer.state_dict()

    found["figures"] = [figures(count) for count in (PATIENTS, 4, 1)]
    found["any"] = [distributed.any_process(rank == 1), distributed.any_process(False)]
    found["mean"] = distributed.mean_over_processes(10.0 * (rank + 1), rank + 1)
    found["gathered"] = distributed.gather({"rank": rank, "values": torch.arange(3 + 1000 * rank)})

    items = [{"patient": f"p{i}", "number": i} for i in range(7)]
    data = CachedDataset(items, Compose([Noted(folder)]), folder / "cache")
    distributed.warm_cache([SeededSamples(data, 0, "stop")])
    found["cached"] = [float(sample["image"][0]) for sample in data]

    torch.save(found, folder / f"{rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
