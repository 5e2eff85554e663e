"""What the stages of a shipped network add, to look at: the volume at 64³, upsampled, the finer one, and the truth.

python benchmarks/draw_stages.py docs/figures/stages.png [--model cascade256]

LIDC-IDRI-0001, whom no shipped network has seen: the middle planes of the true CT, of the coarsest volume (upsampled),
of the network's own, and of that fitted to its radiographs. PSNR is of the whole volume, 3-D, over −1024…1476 HU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.networks.interval import estimate_of
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.checkpoints.shipped import chosen_weights
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.evaluation.baselines import coarser_volumes
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW, psnr
from drr2ct.pipeline.pictures.figures import compared, save_figure
from drr2ct.pipeline.pictures.planes import mid_planes
from drr2ct.pipeline.pictures.scales import show_hu
from drr2ct.pipeline.reconstruction.consistency import fit_to_radiographs
from drr2ct.transforms import files_to_samples
from drr2ct.transforms.volume import to_hu

FIT_STEPS = 1
"""As ``drr2ct reconstruct`` makes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="cascade256", choices=("cascade128", "cascade256"))
    arguments = parser.parse_args()
    weights = chosen_weights(model=arguments.model)
    content = read_checkpoint(weights)
    network = load_network(weights, content=content)
    geometry = network.config.geometry
    item = {"patient": sample_ct().parent.name, "label": str(sample_ct())}
    sample: Any = files_to_samples(geometry, content["description"]["mode"])(item)
    image, label = sample["image"].as_subclass(Tensor), sample["label"]
    with torch.inference_mode():
        own = estimate_of(network(image[None]))[0]
    *_, of_coarsest = coarser_volumes(network).values()
    coarsest = of_coarsest(image)
    fitted, _ = fit_to_radiographs(own, image, geometry, FIT_STEPS)
    truth = to_hu(label.as_tensor())
    low, high = DEFAULT_WINDOW
    volumes = {"true CT": truth}
    for name, volume in {"cascade64": coarsest, arguments.model: own, "fitted": fitted}.items():
        hu = to_hu(volume)
        decibels = psnr(hu.clamp(low, high), truth.clamp(low, high), high - low)
        volumes[f"{name}: {decibels:.2f} dB"] = hu
    planes = [mid_planes(MetaTensor(hu, affine=label.affine)) for hu in volumes.values()]
    figure, grid, scale = compared(len(planes[0]), list(volumes))
    for row, plane in zip(grid, planes[0], strict=True):
        for axes, shown in zip(row, planes, strict=True):
            image = show_hu(axes, shown[plane])
        row[0].set_ylabel(plane)
    figure.colorbar(image, cax=scale, orientation="horizontal", label="HU")
    print(save_figure(figure, arguments.output), *volumes, sep="\n")


if __name__ == "__main__":
    main()
