"""Ways to train that overlays switch on: averaged weights, early stopping, frozen stages, growing.

The overlays are in the bundle's ``configs/recipes``. Warm-up and gradient accumulation need nothing of ours: their
overlays name torch's schedulers and MONAI's trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from drr2ct.networks import CascadeConfig, ProgressiveCascade, network_config
from drr2ct.networks.interval import interval_parameters
from drr2ct.pipeline.checkpoints.files import as_paths, read_checkpoint
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.pipeline.training.transfer import transfer_matching
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError


class WeightAverage:
    """Exponential moving average of a network's weights, moved at every step of the optimiser.

    It hangs on the optimiser, so it counts its steps, not accumulated batches. The
    decay of update n is min(decay, (1 + n) / (10 + n)), so that the first weights are soon forgotten.

    Args:
        network: that is trained.
        optimizer: that trains it.
        decay: of each update, in [0, 1).

    Raises:
        InputError: for a decay outside that range.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"decay {decay} of the weights' average must be at least 0 and below 1, such as 0.999.")
        self.decay = decay
        self._source = network
        self._model = AveragedModel(network, multi_avg_fn=self._move)
        optimizer.register_step_post_hook(lambda *_: self._model.update_parameters(self._source))

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._model.module

    def state_dict(self) -> dict[str, int]:
        """Number of updates; the averaged weights are saved as a network."""
        return {"updates": int(self._model.n_averaged)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint."""
        self._model.n_averaged.fill_(state["updates"])

    @torch.no_grad()
    def _move(self, averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        decay = min(self.decay, (1 + int(updates)) / (10 + int(updates)))
        for target, value in zip(averaged, current, strict=True):
            target.lerp_(value, 1 - decay)


class StopWithoutImprovement:
    """Stop when a validation metric has not improved for so many validations: ignite's ``EarlyStopping``, resumable.

    Args:
        evaluator: the validation engine.
        metric: one of its metrics.
        patience: validations without improvement until training stops.
        mode: ``max`` or ``min``, what is better.
        min_delta: least change that counts.

    Raises:
        InputError: for an unknown mode, or a patience below 1; in training, for an unknown metric, or if the training
            had stopped already.
    """

    def __init__(
        self, evaluator: Engine, metric: str = "psnr", patience: int = 20, mode: str = "max", min_delta: float = 0.0
    ) -> None:
        if mode not in ("max", "min"):
            raise InputError(f"early stopping mode {mode!r} is unknown; use max or min.")
        if patience < 1:
            raise InputError(f"early stopping patience {patience} is below 1.")
        self.evaluator = evaluator
        self.metric = metric
        self.patience = patience
        self.sign = 1 if mode == "max" else -1
        self.min_delta = min_delta
        self._handler: EarlyStopping | None = None

    def attach(self, trainer: Engine) -> None:
        """Register on the evaluator, to stop the trainer."""
        self._handler = EarlyStopping(self.patience, self._score, trainer, self.min_delta)
        self.evaluator.add_event_handler(Events.COMPLETED, self._handler)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._refuse_if_stopped)

    def state_dict(self) -> dict[str, Any]:
        """Best score and validations since, for checkpoints."""
        return dict(self._attached().state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._attached().load_state_dict(state)

    def _attached(self) -> EarlyStopping:
        if self._handler is None:
            raise RuntimeError("attach it first")
        return self._handler

    def _score(self, evaluator: Engine) -> float:
        if self.metric not in evaluator.state.metrics:
            known = ", ".join(sorted(evaluator.state.metrics))
            raise InputError(f"early stopping metric {self.metric!r} is not measured; choose from {known}.")
        return self.sign * float(evaluator.state.metrics[self.metric])

    def _refuse_if_stopped(self, trainer: Engine) -> None:
        handler = self._attached()
        if handler.counter >= self.patience:
            raise InputError(
                f"this training stopped before epoch {trainer.state.epoch}: {self.metric} had not improved in "
                f"{handler.counter} validations; raise early_stopping_patience to go on, or choose another output_dir."
            )


def trainable_parameters(network: nn.Module, freeze: Sequence[str]) -> list[nn.Parameter]:
    """Freeze the parameters whose names match, and return the others, for the optimiser.

    Args:
        network: whose parameters stop to ask for a gradient where they match.
        freeze: patterns of names with ``*`` and ``?``, such as ``encoder.*`` or ``stages.0.*``.

    Raises:
        InputError: for a pattern that matches nothing, or if nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            groups = dict.fromkeys(".".join(n.split(".")[: 2 if n.startswith("stages") else 1]) for n in names)
            raise InputError(
                f"freeze pattern {pattern!r} matches no parameter; their names begin with {', '.join(groups)}, "
                "and a pattern such as encoder.* takes all of one."
            )
    left = []
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in freeze))
        if parameter.requires_grad:
            left.append(parameter)
    if not left:
        raise InputError(f"freeze {', '.join(freeze)} leaves nothing to train; freeze less.")
    return left


def frozen_with_interval(
    checkpoint: str | Path | Sequence[str | Path] | None, bounds_from: str | Path | None = None
) -> ProgressiveCascade:
    """The network of a finished training with an interval head, frozen but for that; its weights are still random.

    Args:
        checkpoint: of the training, from which the weights are to be transferred.
        bounds_from: a checkpoint with bounds, such as a coarser network's: the head begins with its layers. A head of
            ``checkpoint`` itself comes before it.

    Raises:
        InputError: without a checkpoint or for several, as ``read_checkpoint``, or if the bounds do not fit or have
            seen patients that the network has not, of whom then nothing would be said.
    """
    paths = as_paths(checkpoint)
    if not paths:
        raise InputError("bounds are made for a finished network; give transfer_from, such as RUN/checkpoints/last.pt.")
    if len(paths) > 1:
        raise InputError(f"bounds are made for one finished network, not for {len(paths)}; give one as transfer_from.")
    description = read_checkpoint(paths[0])["description"]
    config = CascadeConfig.from_dict(description["config"])
    network = ProgressiveCascade(config.with_overrides({"interval": True})).requires_grad_(False)
    for parameter in interval_parameters(network):
        parameter.requires_grad_(True)
    if bounds_from is not None:
        content = read_checkpoint(bounds_from)
        heads = {name: value for name, value in content["network"].items() if name.startswith("interval.heads.")}
        taken = transfer_matching(network, heads).taken
        if not taken:
            raise InputError(f"bounds_from {bounds_from} has no bounds that fit this network; leave it null.")
        seen = set(content["description"]["patients"].get("training", []))
        if strange := sorted(seen - set(description["patients"].get("training", []))):
            raise InputError(
                f"the bounds of {bounds_from} were trained on patients that {checkpoint} was not trained on "
                f"({', '.join(strange[:5])}); leave bounds_from null."
            )
        if is_main_process():
            print(f"bounds begin with {len(taken)} tensors of {bounds_from}")
    return network


def coarse_config(
    name: str, stages: int, geometry: BiplanarGeometry | None = None, interval: bool = False
) -> CascadeConfig:
    """The first stages of a named network, with its head: a network of its own on a coarser grid.

    Its layers have the names and, but for the head and what the last encoder level is made from, the shapes they have
    in the whole network, so that the next larger one can start from them.

    Args:
        name: one of ``list_networks``.
        stages: how many to keep.
        geometry: on the coarser grid; by default the network's own, cut to it.
        interval: give bounds beside the estimate.

    Raises:
        InputError: for an unknown name, or a number of stages that the network does not have.
    """
    whole = network_config(name)
    if not 1 <= stages <= len(whole.stages):
        raise InputError(f"{name} has {len(whole.stages)} stages; {stages} of them cannot be trained.")
    coarse = whole.first_stages(stages)
    return coarse.with_overrides({"geometry": geometry or coarse.geometry, "interval": interval})


def coarse_size(name: str, stages: int, whole_size: int | None = None) -> int:
    """Voxels along each axis of :func:`coarse_config`, where the whole network gives ``whole_size``.

    Raises:
        InputError: as :func:`coarse_config`, or for a size that the network cannot give.
    """
    coarse = coarse_config(name, stages).geometry.grid.size
    return coarse * network_config(name, size=whole_size).geometry.grid.size // network_config(name).geometry.grid.size


def coarse_network(name: str, stages: int, geometry: BiplanarGeometry, interval: bool = False) -> ProgressiveCascade:
    """The network of :func:`coarse_config`, with random weights.

    Raises:
        InputError: as :func:`coarse_config`.
    """
    return ProgressiveCascade(coarse_config(name, stages, geometry, interval))


def parse_growth(text: str) -> list[tuple[int, int]]:
    """``2:50,3:50`` → [(2, 50), (3, 50)], stages and epochs.

    Raises:
        InputError: if it is not of that form, or stages do not increase.
    """
    try:
        steps = [(int(stages), int(epochs)) for stages, epochs in (step.split(":") for step in text.split(","))]
    except ValueError as error:
        raise InputError(
            f"growth {text!r} is not of the form STAGES:EPOCHS,STAGES:EPOCHS such as 2:50,3:50."
        ) from error
    numbers = [stages for stages, _ in steps]
    if numbers != sorted(set(numbers)) or min(epochs for _, epochs in steps) < 1:
        raise InputError(f"growth {text!r} needs increasing numbers of stages, and at least one epoch each.")
    return steps


def finished(last: Path, epochs: int) -> bool:
    """Whether a training's last checkpoint is there and has seen so many epochs."""
    return last.exists() and read_checkpoint(last)["description"]["epoch"] >= epochs


def train_growing(
    config_files: Sequence[str | Path], overrides: Mapping[str, Any], growth: Sequence[tuple[int, int]]
) -> None:
    """Train the first stages of a cascade, then more, each from the weights of the one before; at last the whole.

    The coarse trainings lie in ``stages1``, ``stages2``, … of the run's folder. Stopped, the same call goes on.

    Args:
        config_files: of the whole training.
        overrides: as of ``run_bundle``.
        growth: stages and epochs of each coarse training.

    Raises:
        InputError: as ``run_bundle``.
    """
    before: dict[str, Any] = {}
    shared = {"whole_size" if key == "size" else key: value for key, value in overrides.items()}
    files = [*config_files, bundle_file("configs/recipes/coarse_stages.yaml")]
    files.sort(key=lambda file: Path(file).name == "multi_gpu_train.yaml")  # comes last
    for stages, epochs in growth:
        folder = Path(overrides["output_dir"]) / f"stages{stages}"
        last = folder / "checkpoints" / "last.pt"
        if not finished(last, epochs):
            coarse = {"coarse_stages": stages, "output_dir": folder, "train#trainer#max_epochs": epochs}
            run_bundle(files, {**shared, **before, **coarse})
        before = {"transfer_from": last}
    run_bundle(config_files, {**overrides, **before})
