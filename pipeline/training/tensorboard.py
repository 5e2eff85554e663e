"""What a training writes for TensorBoard, and how its event file goes on after an interruption."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from drr2ct.networks.interval import estimate_of
from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.pictures.planes import mid_planes
from drr2ct.pipeline.pictures.scales import DISPLAY_WINDOW, ERROR_RANGE, grey
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.pipeline.running.engines import engine_output
from drr2ct.pipeline.running.memory import peak_memory_bytes
from drr2ct.pipeline.training.numerics import SkipNonFiniteSteps
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import to_hu


class EventLog(SummaryWriter):
    """TensorBoard's writer, which makes its file with the first event, and goes back to where a checkpoint was.

    Its state is the size of every event file of the folder. Events that came later are cut off on resuming, whatever
    their tags and steps count; TensorBoard's own ``purge_step`` compares one number with steps, which here count
    iterations for some tags and epochs for others.

    Args:
        log_dir: of the event files.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self._folder = Path(log_dir)
        self._earlier = self._files()
        self._opened = False
        if is_main_process():
            self._await_later_name()
            super().__init__(str(log_dir))
            self._opened = True
        else:
            self.all_writers = None  # flush and close do nothing

    def _get_file_writer(self) -> Any:
        # torch asks for it before every event, and once when this is made: too early, as the run may yet be refused
        return super()._get_file_writer() if self._opened else None

    def _await_later_name(self) -> None:
        """TensorBoard reads files in the order of their names, which begin with the second that they were made in."""
        stamps = [path.name.split(".")[3] for path in self._earlier]
        last = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
        while 0 <= last - int(time.time()) < 2:  # not where the clock was set back: that may be long
            time.sleep(0.05)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("events.out.tfevents.*"))

    def state_dict(self) -> dict[str, int]:
        """Sizes in bytes of the event files by name, which are synced to the disk."""
        self.flush()
        sizes = {}
        for path in self._files():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                sizes[path.name] = path.stat().st_size
        return sizes

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the files that were there before this one was opened; those that are not in the state are removed."""
        if not is_main_process():
            return
        for path in self._earlier:
            if path.name not in state:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > state[path.name]:
                os.truncate(path, state[path.name])


class TensorBoardScalars:
    """Per iteration: loss and its terms, learning rate, seconds; per epoch: the metrics, and peak memory.

    Args:
        writer: of the run's event file.
        evaluator: the validation engine, whose metrics are written at the trainer's epoch.
        optimizer: whose learning rate is written.
        loss: whose last terms are written, one by one.
        device: whose peak memory is written.
        numerics: whose counts of skipped steps are written.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        evaluator: Engine,
        optimizer: torch.optim.Optimizer,
        loss: WeightedLoss,
        device: torch.device,
        numerics: SkipNonFiniteSteps | None = None,
    ) -> None:
        self.writer = writer
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.loss = loss
        self.device = device
        self.numerics = numerics
        self._terms: dict[str, Tensor] = {}
        self._began = 0.0

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self._loss_completed)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.add_event_handler(Events.COMPLETED, self.writer.flush)

        @self.evaluator.on(Events.COMPLETED)
        def _validated() -> None:
            for name, value in self.evaluator.state.metrics.items():
                self.writer.add_scalar(f"validation/{name}", value, trainer.state.epoch)

    def _iteration_started(self) -> None:
        self._began = time.monotonic()

    def _loss_completed(self) -> None:
        self._terms = dict(self.loss.last_terms)

    def _iteration_completed(self, trainer: Engine) -> None:
        step = trainer.state.iteration
        self.writer.add_scalar("training/loss", float(engine_output(trainer)[0]["loss"]), step)
        for name, value in self._terms.items():
            self.writer.add_scalar(f"training/loss_{name}", value.item(), step)
        self.writer.add_scalar("training/lr", self.optimizer.param_groups[0]["lr"], step)
        self.writer.add_scalar("training/seconds_per_iteration", time.monotonic() - self._began, step)

    def _epoch_completed(self, trainer: Engine) -> None:
        for name, value in trainer.state.metrics.items():
            self.writer.add_scalar(f"training/{name}", value, trainer.state.epoch)
        self.writer.add_scalar("training/peak_memory_gib", peak_memory_bytes(self.device) / 2**30, trainer.state.epoch)
        if self.numerics is not None:
            self.writer.add_scalar("training/skipped_steps", self.numerics.skipped, trainer.state.epoch)
            self.writer.add_scalar("training/scaler_overflows", self.numerics.overflows, trainer.state.epoch)
        self.writer.flush()


class TensorBoardPlanes:
    """Truth, prediction and error in three planes, and the radiographs, of the first validation patient.

    Fixed HU window, so that epochs can be compared. Attach to the evaluator.

    Args:
        writer: of the run's event file.
        geometry: says where the volumes' axes point.
        interval: write at every so many epochs.
    """

    def __init__(self, writer: SummaryWriter, geometry: BiplanarGeometry, interval: int = 1) -> None:
        self.writer = writer
        self.geometry = geometry
        self.interval = interval

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        """Write the pictures of the batch's first patient."""
        epoch = evaluator.state.epoch  # the trainer's: MONAI's ValidationHandler passes it on
        if evaluator.state.iteration > 1 or epoch % self.interval:
            return
        sample = engine_output(evaluator)[0]
        label, pred = sample["label"], estimate_of(sample["pred"])
        affine = torch.from_numpy(self.geometry.grid.affine())
        plain = (volume.detach().cpu().float().as_subclass(Tensor) for volume in (label, pred))
        truth, made = (MetaTensor(to_hu(volume), affine) for volume in plain)
        error = MetaTensor(made.as_tensor() - truth.as_tensor(), affine)
        for name, volume, window in (
            ("truth", truth, DISPLAY_WINDOW),
            ("prediction", made, DISPLAY_WINDOW),
            ("error", error, (-ERROR_RANGE, ERROR_RANGE)),
        ):
            for plane, values in mid_planes(volume).items():
                self.writer.add_image(f"{plane}/{name}", grey(values, *window), epoch, dataformats="HW")
        for view, radiograph in zip(self.geometry.views, sample["image"].cpu().numpy(), strict=True):
            shown = grey(radiograph, 0.0, max(1.0, float(radiograph.max())))
            self.writer.add_image(f"radiographs/{view.name}", shown, epoch, dataformats="HW")
