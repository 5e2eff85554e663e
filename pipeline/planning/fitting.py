"""What fits a GPU and how long it takes: memory to ask for, the largest batch, what to change, throughput."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import torch

from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.planning.plan import Plan, Settings, plan_network
from drr2ct.pipeline.planning.tracing import TrainingStep, bundle_optimizer
from drr2ct.transforms.validation import InputError

ALLOCATOR_MARGIN = 0.10
"""Fraction added to the peak for kernels' workspaces and fragmentation."""
CONTEXT_BYTES = 2**29
"""Added for the CUDA context and the loaded kernels."""
MOST_BATCH = 1024
"""Where the search for the largest batch ends."""
FEWER_XRAY_CHANNELS = 96

_UNITS = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_RATES = {"g": 1e9, "t": 1e12, "p": 1e15}


def parse_bytes(text: str) -> int:
    """``80 GiB`` → bytes; MB, GB, TB count in thousands, MiB, GiB, TiB in 1024s.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise InputError(f"memory {text!r} cannot be read; write a number and a unit, such as 80 GiB.")
    return int(float(match[1]) * unit)


def parse_rate(text: str) -> float:
    """``50 TFLOP/s`` → FLOP per second.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([gtp])flop(?:/s|s)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"throughput {text!r} cannot be read; write a number and a unit, such as 50 TFLOP/s.")
    return float(match[1]) * _RATES[match[2].lower()]


def needed_bytes(plan: Plan) -> int:
    """GPU memory to ask for: the step's peak, and a margin for what the trace cannot see."""
    return int(plan.step_peak_bytes * (1 + ALLOCATOR_MARGIN)) + CONTEXT_BYTES


def largest_batch(settings: Settings, memory_bytes: int) -> int:
    """Most samples per step that fit, 0 if not even one does; found and confirmed by tracing.

    Raises:
        InputError: as :func:`plan_network`.
    """

    def needs(batch: int) -> int:
        return needed_bytes(plan_network(replace(settings, batch=batch)))

    one = needs(1)
    if one > memory_bytes:
        return 0
    # The peak is a maximum of straight lines in the batch. Steeper ones may come, so the line through what is known
    # leads to the largest batch or beyond it, and with an end that is beyond, halves keep it from creeping.
    fits, taken, slope = 1, one, max(needs(2) - one, 1)
    beyond = MOST_BATCH + 1
    guess = fits + (memory_bytes - taken) // slope
    while fits + 1 < beyond:
        guess = min(max(guess, fits + 1), beyond - 1)
        need = needs(guess)
        slope = max((need - taken) // (guess - fits), 1)
        if need > memory_bytes:
            beyond = guess
        else:
            fits, taken = guess, need
        straight = fits + (memory_bytes - taken) // slope
        guess = straight if beyond > MOST_BATCH or beyond == guess else (fits + beyond) // 2
    return fits


def cheapest_change(settings: Settings, memory_bytes: int) -> tuple[str, Plan] | None:
    """What to change so that a step fits, and its plan; None if nothing tried is enough.

    Tried in the order of what they cost: bf16 (nothing), a smaller batch (more steps), activation checkpointing
    (computing the forward pass twice), fewer X-ray channels (another network); each alone, then one after the other.

    Raises:
        InputError: as :func:`plan_network`.
    """
    config = settings.config()
    changes: list[tuple[str, dict[str, Any]]] = []
    if settings.precision == "fp32":
        changes.append(("bf16", {"precision": "bf16"}))
    if settings.batch > 1:
        batch = max(min(largest_batch(settings, memory_bytes), settings.batch - 1), 1)
        changes.append((f"batch {batch}", {"batch": batch}))
    if not config.checkpointing:
        changes.append(("activation checkpointing", {"checkpointing": True}))
    if config.lift == "broadcast" and config.encoder_channels[-1] > FEWER_XRAY_CHANNELS:
        changes.append((f"{FEWER_XRAY_CHANNELS} X-ray channels", {"xray_channels": FEWER_XRAY_CHANNELS}))
    combined = [changes[: i + 1] for i in range(1, len(changes))]
    for tried in [[change] for change in changes] + combined:
        plan = plan_network(replace(settings, **{key: value for _, values in tried for key, value in values.items()}))
        if needed_bytes(plan) <= memory_bytes:
            return " and ".join(what for what, _ in tried), plan
    return None


def measure_throughput(settings: Settings) -> float:
    """FLOP per second of real training steps of this network, on the GPU if there is one, else on the CPU.

    The network is cut to the largest grid whose step stays short and small. The first of two steps warms up.

    Raises:
        InputError: as :func:`plan_network`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        memory, most_flops = torch.cuda.mem_get_info()[0], 100e12
    else:
        memory, most_flops = 2**30, 0.2e12
    full = settings.config().geometry
    precision = "bf16" if settings.precision == "fp16" and device.type == "cpu" else settings.precision
    for size in sorted({full.grid.size, 256, 128, 64, 32}, reverse=True):
        detector = max(full.detector_size[0] * size // full.grid.size, 32)
        small = replace(settings, batch=1, size=size, detector=detector, precision=precision)
        plan = plan_network(small)
        if size <= full.grid.size and needed_bytes(plan) <= memory and plan.step_flops <= most_flops:
            break
    step, loss = TrainingStep(small.config(), 1, precision, bundle_optimizer(small.network), device), WeightedLoss()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        step.run(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return plan.step_flops / seconds
