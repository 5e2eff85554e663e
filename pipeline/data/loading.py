"""Batches whose order and augmentation depend on the seed and the epoch alone, and readers that may fail.

A resumed training must see what the uninterrupted one would have seen. So nothing is drawn from generators that
remember: the order of an epoch is a function of (seed, epoch), a sample's random transforms are one of
(seed, epoch, index), and what the network draws in a step (dropout) is one of (seed, step). It holds for any number of
loading processes, and there is no random state to save.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, DistributedSampler
from monai.data.utils import set_rnd
from torch.utils.data import Dataset

from drr2ct.pipeline.running.distributed import PatientShare, rank, world_size
from drr2ct.pipeline.running.faults import explain_fault, origin
from drr2ct.transforms.validation import InputError, whole_number

ON_BAD_SAMPLE = ("stop", "skip")
UNREADABLE = "unreadable"
"""Key under which a sample names the patients whose place it takes."""

logger = logging.getLogger(__name__)


class BadSampleError(InputError):
    """A patient's files cannot be read; the message names it."""


def derived_seed(*numbers: int) -> int:
    """A 32-bit seed from several numbers, well mixed (NumPy's ``SeedSequence``)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Set the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class EpochSampler(DistributedSampler):
    """Indices in an order given by (seed, epoch), each with its epoch; this process's share where there are several.

    MONAI's engines call ``set_epoch``. A sampler that shuffles is for training, where every process needs the same
    number of steps, so the shares are padded; without, they are those of :class:`PatientShare`.

    Args:
        dataset: its length is used.
        shuffle: another order for every epoch.
        seed: of the order.
    """

    def __init__(self, dataset: Any, shuffle: bool, seed: int) -> None:
        super().__init__(dataset, num_replicas=world_size(), rank=rank(), shuffle=shuffle, seed=seed)
        self.share = None if shuffle else PatientShare(dataset)
        self.skip = 0

    def __len__(self) -> int:
        """Number of samples of this process."""
        return super().__len__() if self.share is None else len(self.share)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(epoch, index) of this epoch's samples; the first time without the ``skip`` that were seen already."""
        order = super().__iter__() if self.share is None else iter(self.share)
        start, self.skip = self.skip, 0
        return iter([(self.epoch, int(index)) for index in order][start:])


class SeededSamples(Dataset[Any]):
    """A data set asked for (epoch, index): seeds the random transforms, and deals with samples that cannot be read.

    Args:
        dataset: of dictionaries; its ``data`` holds the items, with the patients' names.
        seed: of the random transforms.
        on_bad_sample: ``stop``, or ``skip`` to put the next readable patient in the place of one that is not.
    """

    def __init__(self, dataset: Any, seed: int, on_bad_sample: str) -> None:
        if on_bad_sample not in ON_BAD_SAMPLE:
            raise InputError(f"on_bad_sample {on_bad_sample!r} is unknown; choose from {', '.join(ON_BAD_SAMPLE)}.")
        self.dataset = dataset
        self.seed = seed
        self.on_bad_sample = on_bad_sample
        self.left_out: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The sample of (epoch, index), or the next one if its patient is left out, or with ``skip`` cannot be read.

        Raises:
            BadSampleError: if it cannot be read, or with ``skip`` if none can.
        """
        epoch, index = key
        unreadable: list[str] = []
        for further in range(len(self)):
            place = (index + further) % len(self)
            if self._patient(place) in self.left_out:
                continue
            try:
                sample = self._read(epoch, place)
            except Exception as error:
                if (fault := explain_fault(error)) is not None:
                    raise fault from origin(fault, error)  # a full disk is not the patient's fault
                bad = f"patient {self._patient(place)} cannot be read ({_reason(error)})"
                if self.on_bad_sample == "stop":
                    raise BadSampleError(f"{bad}; repair or remove it, or set on_bad_sample to skip.") from error
                unreadable.append(bad)
            else:
                return {**sample, UNREADABLE: "\n".join(unreadable)}
        raise BadSampleError(f"no patient of {len(self)} can be read; the first: {unreadable[0]}.")

    def _read(self, epoch: int, index: int) -> Any:
        seed = derived_seed(self.seed, epoch, index)
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would also reset the GPU's
            for dataset in self._layers():
                set_rnd(getattr(dataset, "transform", None), seed)
            return self.dataset[index]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])

    def _layers(self) -> Iterator[Any]:
        """The data set and those that it wraps."""
        dataset = self.dataset
        while dataset is not None:
            yield dataset
            dataset = getattr(dataset, "dataset", None)

    def _patient(self, index: int) -> str:
        items: Sequence[Any] = next((dataset.data for dataset in self._layers() if hasattr(dataset, "data")), [])
        item = items[index % len(items)] if items else None  # an epoch may have several samples of each
        return str(item["patient"]) if isinstance(item, Mapping) and "patient" in item else f"number {index}"


def _reason(error: BaseException) -> str:
    """What lies behind an exception that MONAI's transforms have wrapped, in one line."""
    while error.__cause__ is not None or error.__context__ is not None:
        if isinstance(error, InputError):
            break
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


class PatientLoader(DataLoader):
    """MONAI's ``DataLoader`` that can be resumed within an epoch and says which patients cannot be read.

    Attach it to an engine to have the patients that were skipped listed at the end.

    Args:
        dataset: of dictionaries.
        batch_size: samples per step (of this process).
        shuffle: another order for every epoch; for training.
        seed: of order and random transforms.
        num_workers: loading processes.
        on_bad_sample: ``stop`` or ``skip``, see :class:`SeededSamples`.
        timeout: seconds without a batch from the loading processes after which they count as stalled.
        **kwargs: of torch's ``DataLoader``.

    Raises:
        InputError: for an unknown ``on_bad_sample``, no sample per step, or less than no process.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_sample: str = "stop",
        timeout: float = 600.0,
        **kwargs: Any,
    ) -> None:
        whole_number("batch_size", batch_size, 1)
        whole_number("num_workers", num_workers, 0)
        samples = SeededSamples(dataset, seed, on_bad_sample)
        super().__init__(
            samples,
            num_workers=num_workers,
            batch_size=batch_size,
            sampler=EpochSampler(samples, shuffle, seed),
            timeout=timeout if num_workers else 0,
            # else the seed of the loading processes is drawn from torch's own generator, in the middle of a training
            generator=torch.Generator().manual_seed(seed),
            **kwargs,
        )
        self.unreadable: list[str] = []

    def skip_batches(self, count: int) -> None:
        """Begin the next iteration, and only that one, after so many batches."""
        assert isinstance(self.sampler, EpochSampler) and self.batch_size is not None
        self.sampler.skip = count * self.batch_size

    def leave_out(self, patients: Collection[str]) -> None:
        """Put other patients in the place of these from the next iteration on."""
        assert isinstance(self.dataset, SeededSamples)
        self.dataset.left_out = frozenset(patients)

    def attach(self, engine: Engine) -> None:
        """Register on an engine."""
        engine.add_event_handler(Events.COMPLETED, self._list_unreadable)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches; a patient that cannot be read is reported the first time.

        Raises:
            BadSampleError: see :class:`SeededSamples`.
        """
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except BadSampleError as error:
                # one that comes from a loading process holds that process's traceback
                raise BadSampleError(str(error).rsplit("BadSampleError: ", 1)[-1].strip()) from None
            for text in batch.pop(UNREADABLE):
                self._report(text)
            yield batch

    def _report(self, text: str) -> None:
        for bad in text.splitlines():
            if bad not in self.unreadable:
                self.unreadable.append(bad)
                logger.warning("%s; skipped", bad)

    def _list_unreadable(self) -> None:
        if self.unreadable:
            listed = "\n".join(f"  {bad}" for bad in self.unreadable)
            logger.warning("Patients that were skipped (%d):\n%s", len(self.unreadable), listed)


class ReseedEachStep:
    """Set all generators at the start of every step from (seed, process, step).

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        trainer.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, trainer: Engine) -> None:
        """Seed for the step that begins."""
        seed_generators(derived_seed(self.seed, rank(), trainer.state.iteration))
