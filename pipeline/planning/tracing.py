"""A training step as it is, and what watches it: the memory and FLOPs of its operations, booked by part of the network.

Every storage is counted once, from the operation that makes it to the moment its last reference goes: through forward,
backward (with recomputation) and optimiser.
"""

from __future__ import annotations

import functools
import pydoc
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from drr2ct.networks import CascadeConfig, ProgressiveCascade
from drr2ct.networks.interval import OnPlanes
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.pipeline.running.precision import AutocastInferer, clip_gradients

Inside = Callable[[Any, Any, Any], int]
OptimizerClass = Callable[..., torch.optim.Optimizer]


@functools.cache
def bundle_optimizer(network: str = "") -> OptimizerClass:
    """The class of the optimiser by which the bundle trains a named network, or one without a name: ``train.yaml``'s.

    It is found by its name there, so that nothing here can drift from it.
    """
    config = yaml.safe_load(bundle_file("configs/train.yaml").read_text(encoding="utf-8"))
    target = config["optimizer"]["_target_"]
    if network:
        overlay = yaml.safe_load(bundle_file(f"configs/networks/{network}.yaml").read_text(encoding="utf-8"))
        target = overlay.get("optimizer#_target_", target)
    found: Any = pydoc.locate(target)
    return found


class StorageTracker(TorchDispatchMode):
    """Follows the memory of all tensors that operations make while it is entered, and counts their FLOPs.

    Views share their storage, which is counted once, when it first appears, until Python and autograd drop it.

    Args:
        inside: given an operation and its arguments, the most bytes that it allocates while it runs, its results
            included; by default none but these.

    Attributes:
        live: bytes in use.
        peak: most bytes in use; may be set back to ``live``.
        flops: so far, as ``torch.utils.flop_counter`` counts them.
        section: under which name peaks, growth and FLOPs are booked.
    """

    def __init__(self, inside: Inside | None = None) -> None:
        super().__init__()
        self.inside = inside
        self.live = self.peak = self.flops = 0
        self.section = ""
        self.section_peak: dict[str, int] = defaultdict(int)
        self.section_flops: dict[str, int] = defaultdict(int)
        self.section_growth: dict[str, int] = defaultdict(int)
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at what it made."""
        kwargs = kwargs or {}
        while_running = self.live + self.inside(func, args, kwargs) if self.inside else 0
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        if formula := flop_registry.get(func.overloadpacket):
            flops = formula(*args, **kwargs, out_val=result)
            self.flops += flops
            self.section_flops[self.section] += flops
        most = max(self.live, while_running)
        self.peak = max(self.peak, most)
        self.section_peak[self.section] = max(self.section_peak[self.section], most)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._storages:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            del self._storages[key]
            self._change(-size)

        self._storages[key] = weakref.ref(storage, freed)
        self._change(size)

    def _change(self, size: int) -> None:
        self.live += size
        self.section_growth[self.section] += size


class TrainingStep:
    """Network, default loss, optimiser and a random batch, as the bundle's ``train.yaml`` puts them together.

    Args:
        config: of the network.
        batch: samples.
        precision: ``bf16``, ``fp16`` or ``fp32``.
        optimizer: class of the optimiser, see :func:`bundle_optimizer`.
        device: where.
    """

    def __init__(
        self,
        config: CascadeConfig,
        batch: int,
        precision: str,
        optimizer: OptimizerClass,
        device: torch.device | str = "cpu",
    ) -> None:
        with torch.device(device):  # not .to(device), which cannot move fake weights
            self.network = ProgressiveCascade(config)
        self.inferer = AutocastInferer(torch.device(device).type, precision)
        self.optimizer = clip_gradients(optimizer(self.network.parameters(), lr=1e-4, weight_decay=1e-4), max_norm=1.0)
        views, size = len(config.geometry.views), config.geometry.grid.size
        self.image = torch.rand(batch, views, *config.geometry.detector_size, device=device)
        self.label = torch.rand(batch, 1, size, size, size, device=device)

    def settle(self) -> None:
        """Make the gradients and the optimiser's state, so that the next step is like all later ones."""
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def infer(self) -> Tensor:
        """Reconstruct the batch, without gradients: (batch, 1, N, N, N); 3 channels with an interval."""
        self.network.eval()
        with torch.no_grad():
            output = self.inferer(self.image, self.network)
        assert isinstance(output, Tensor)  # on planes in training only
        return output

    def run(
        self,
        loss: nn.Module,
        phase: Callable[[str], None] = lambda name: None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """One training step, in the order of MONAI's ``SupervisedTrainer``.

        Args:
            loss: called with (prediction, target).
            phase: told when ``forward``, ``loss``, ``backward`` and ``optimiser`` begin.
            scaler: of the loss, for fp16.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=False)
        phase("forward")
        pred = self.inferer(self.image, self.network)
        phase("loss")
        value = loss(pred, self.label)
        phase("backward")
        (value if scaler is None else scaler.scale(value)).backward()
        phase("optimiser")
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)  # unscales, then the optimiser's hook clips
            scaler.update()
        # the trainer holds the prediction until the next iteration
        del pred


def _parts(network: ProgressiveCascade) -> list[tuple[str, list[nn.Module]]]:
    """Names and modules, in the order they run."""
    sizes = network.config.stage_sizes
    parts: list[tuple[str, list[nn.Module]]] = [("encoder", [network.encoder])]
    parts += [(f"encoder of stage {network.first_output + i + 2}", [e]) for i, e in enumerate(network.fine_encoders)]
    parts += [(f"stage {i + 1}, {n}³", [s]) for i, (n, s) in enumerate(zip(sizes, network.stages, strict=True))]
    parts += [(f"skip from stage {i + 1}", [s]) for i, s in zip(network.skip_stages, network.skips, strict=True)]
    if len(network.skips):
        parts.append(("skip fusion", [network.skip_fusion]))
    if len(network.refinement):
        parts.append(("refinement", list(network.refinement)))
    heads = [f"head of stage {network.first_output + i + 1}" for i in range(len(network.outputs) - 1)] + ["head"]
    parts += [(name, [head]) for name, head in zip(heads, network.outputs, strict=True)]
    if len(network.members):  # after the head whose volume theirs are joined with
        parts.insert(len(parts) - len(heads) + 1, ("further members", list(network.members)))
    return parts if network.interval is None else [*parts, ("interval", [network.interval])]


@runtime_checkable
class HasSection(Protocol):
    """What is told which part runs."""

    section: str


class Sections:
    """Tells the tracker which part runs: by module hooks going forward, by gradient hooks coming back.

    Args:
        tracker: that is told.
        network: whose parts they are.
    """

    def __init__(self, tracker: HasSection, network: ProgressiveCascade) -> None:
        self.tracker = tracker
        self.parts = _parts(network)
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.phase = ""  # until one begins, no part is noted: validation runs the network too
        following = [name for name, _ in self.parts[1:]] + ["loss"]
        self.handles = []
        for (name, modules), after in zip(self.parts, following, strict=True):
            for module in modules:
                self.handles.append(module.register_forward_pre_hook(self._entered(name)))
                last = module is modules[-1]
                self.handles.append(module.register_forward_hook(self._left(name, after if last else name)))

    def begin(self, phase: str) -> None:
        """Note the phase; loss and optimiser are sections of their own."""
        self.phase = phase
        self.tracker.section = {"forward": self.parts[0][0], "backward": "loss"}.get(phase, phase)

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()

    def _entered(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self.phase == "forward":  # not in recomputation
                self.tracker.section = name
                self.shapes.setdefault(name, [tuple(inputs[0].shape[1:]), ()])

        return hook

    def _left(self, name: str, after: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor | list[Tensor] | OnPlanes) -> None:
            if self.phase != "forward":
                return
            if isinstance(output, OnPlanes):
                output = output.bounds
            # the encoder gives a list of maps, (batch, views, channels, h, w)
            outputs = output if isinstance(output, list) else [output]
            self.shapes[name][1] = tuple(outputs[-1].shape[2 if isinstance(output, list) else 1 :])
            for tensor in outputs:
                if tensor.requires_grad:
                    tensor.register_hook(self._returned(name))
            # what joins parts (a concatenation) belongs to the one that follows
            self.tracker.section = after

        return hook

    def _returned(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self.tracker.section = name

        return hook
