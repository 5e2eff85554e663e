"""Size of a whole report: real CTs on a 256³ grid, made-up predictions (the truth, blurred), made-up training curves.

python benchmarks/report_page.py --output DIR [--cts DIR] [--patients 3]

The page holds what it holds for a real run: all figures and tables, and as many patients in the viewer as fit, the
median first. The sample CT comes first, then those of --cts. Prints megabytes and seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch.nn.functional as F
from monai.data import MetaTensor
from rich.console import Console

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.data.datalist import write_datalist
from drr2ct.pipeline.data.sample.cts import real_cts, sample_ct
from drr2ct.pipeline.evaluation.figures import REPROJECTION_FIGURES
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from drr2ct.pipeline.evaluation.protocol import FORMAT, patient_records, write_table
from drr2ct.pipeline.reports.report import write_report
from drr2ct.pipeline.running.startup import use_large_pages
from drr2ct.pipeline.training.epoch_csv import CSV_COLUMNS
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.pipeline.volumes.placing import place_on_grid
from drr2ct.transforms.files import write_csv, write_json
from drr2ct.transforms.preprocessing import files_to_samples


def main() -> None:
    use_large_pages()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cts", type=Path, help="folder of patient folders with CTs")
    parser.add_argument("--patients", type=int, default=3)
    arguments = parser.parse_args()
    console = Console()
    sample = sample_ct()
    cts = {sample.parent.name: sample, **(real_cts(arguments.cts) if arguments.cts else {})}
    items = [{"patient": name, "label": str(path.resolve())} for name, path in cts.items()][: arguments.patients]

    run, data = arguments.output / "run", arguments.output / "data"
    network = create_network("cascade256")
    description = {**describe(network, "cascade256", "cube", {"training": [], "validation": []}), "epoch": 200}
    content = {"network": network.state_dict(), "description": description}
    write_checkpoint(run / "checkpoints" / "best_psnr.pt", content)
    for item in items:
        data.mkdir(parents=True, exist_ok=True)
        (data / item["patient"]).symlink_to(Path(item["label"]).parent)
    listed = [{**item, "label": str(data / item["patient"] / Path(item["label"]).name)} for item in items]
    write_datalist(data, {"training": [], "validation": [], "test": listed}, "for a benchmark")
    (run / "config.yaml").write_text(f"dataset_dir: {data}\nmetric_window: [-1024.0, 1476.0]\n")
    curves = [
        [epoch, phase, 0.2 / epoch**0.5, 20 + epoch**0.4, 0.6 - 0.3 / epoch, 1e-4, seconds, 0]
        for epoch in range(1, 201)
        for phase, seconds in (("training", 610), ("validation", 42))
    ]
    write_csv(run / "epochs.csv", CSV_COLUMNS, curves)

    to_sample = files_to_samples(network.config.geometry)
    figures = {}
    for number, item in enumerate(items):
        label = to_sample(item)["label"]
        truth = place_on_grid(label, network.config.geometry, label)
        width = (5, 9, 17)[number % 3]
        blurred = F.avg_pool3d(truth.as_tensor()[None], width, 1, width // 2, count_include_pad=False)[0]
        made = MetaTensor(blurred, affine=truth.affine)
        patient = item["patient"]
        write_volume(run / "evaluation" / "predictions" / patient / f"{patient}_ct.nii.gz", made)
        figures[patient] = ReconstructionMetric().compute(made, truth) | dict.fromkeys(REPROJECTION_FIGURES, 0.05)
        console.print(f"{patient}: {figures[patient]['psnr']:.1f} dB")
    write_table(run / "evaluation" / "patients.csv", figures)
    records = {"format": FORMAT, "patients": patient_records(figures)}
    write_json(run / "evaluation" / "patients.json", records)

    began, busy = time.monotonic(), time.process_time()
    page = write_report([run], console=Console(quiet=True))
    size, seconds, busy = page.stat().st_size / 1e6, time.monotonic() - began, time.process_time() - busy
    console.print(
        f"{page}: {size:.1f} MB for {len(items)} patient{'s' * (len(items) != 1)} at 256³, written in {seconds:.0f} s, "
        f"{busy:.1f} s of processor time"
    )


if __name__ == "__main__":
    main()
