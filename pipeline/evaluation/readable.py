"""Which patients can be judged: one that cannot be read is named and left out, and does not cost the others.

``evaluate``, its baselines and ``robustness`` all go by it; a training stops instead, unless told otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import DataLoader
from monai.transforms import Compose
from torch.utils.data import Dataset

from drr2ct.pipeline.data.patients import ON_BAD_SAMPLE
from drr2ct.pipeline.running.bundle import find_input_error
from drr2ct.pipeline.running.distributed import gather, is_main_process, share
from drr2ct.pipeline.running.faults import explain_fault, origin
from drr2ct.transforms.files import write_csv
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCTd

LEFT_OUT = "left_out.csv"

logger = logging.getLogger(__name__)


def read_steps(preprocessing: Compose) -> int:
    """How many of the first steps of ``files_to_samples`` read files."""
    return 1 + next(i for i, step in enumerate(preprocessing.transforms) if isinstance(step, LoadCTd))


def unreadable(error: Exception) -> str:
    """The reason why a patient cannot be read, from what reading raised.

    Raises:
        InputError: if the machine is at fault, not the patient's files.
    """
    if (fault := explain_fault(error)) is not None:
        raise fault from origin(fault, error)
    mistake = find_input_error(error)
    return str(mistake).rstrip(".") if mistake is not None else f"{type(error).__name__}: {error}"


def readable(
    items: Sequence[Mapping[str, Any]],
    preprocessing: Compose,
    output_dir: str | Path,
    on_bad_sample: str = "skip",
    num_workers: int = 0,
) -> list[Mapping[str, Any]]:
    """The patients whose CT and radiographs can be read; the others are logged and stand in ``left_out.csv``.

    Each is read once for that. Several processes share the reading, and get the same list.

    Args:
        items: of a data list.
        preprocessing: of ``files_to_samples``.
        output_dir: of the judgement.
        on_bad_sample: ``skip``, or ``stop`` at the first.
        num_workers: processes that read.

    Raises:
        InputError: with ``stop`` for one that cannot be read, or if none can; for another ``on_bad_sample``.
    """
    if on_bad_sample not in ON_BAD_SAMPLE:
        raise InputError(f"on_bad_sample {on_bad_sample!r} is unknown; choose from {', '.join(ON_BAD_SAMPLE)}.")
    mine = _Reasons([items[i] for i in share(len(items))], preprocessing)
    reasons = list(DataLoader(mine, batch_size=1, num_workers=num_workers, collate_fn=_only))
    own = dict(zip(map(str, share(len(items))), reasons, strict=True))
    found = {int(i): text for part in gather(own) for i, text in part.items()}
    unusable = [(str(item["patient"]), found[i]) for i, item in enumerate(items) if found[i]]
    if unusable and on_bad_sample == "stop":
        patient, reason = unusable[0]
        raise InputError(
            f"patient {patient} cannot be read ({reason}); repair or remove it, or set on_bad_sample to skip."
        )
    name_left_out(unusable, len(items), output_dir)
    return [item for i, item in enumerate(items) if not found[i]]


def name_left_out(left_out: Sequence[tuple[str, str]], count: int, output_dir: str | Path) -> None:
    """Log the patients that cannot be read, and write them to ``left_out.csv``; one process does.

    Args:
        left_out: patients and reasons.
        count: of all patients.
        output_dir: of the judgement.

    Raises:
        InputError: if none is left.
    """
    if len(left_out) == count:
        raise InputError(f"none of {count} patients can be read; the first, {left_out[0][0]}: {left_out[0][1]}.")
    if not is_main_process():
        return
    place = Path(output_dir) / LEFT_OUT
    if not left_out:
        place.unlink(missing_ok=True)  # of a judgement before
        return
    write_csv(place, ["patient", "reason"], left_out)
    for patient, reason in left_out:
        logger.warning("patient %s left out: %s", patient, reason)


class _Reasons(Dataset[str]):
    """For each item, why it cannot be read."""

    def __init__(self, items: Sequence[Mapping[str, Any]], preprocessing: Compose) -> None:
        self.items = items
        self.preprocessing = preprocessing
        self.end = read_steps(preprocessing)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> str:
        try:
            self.preprocessing(dict(self.items[index]), end=self.end)
        except Exception as error:  # whatever a damaged file leads to
            return unreadable(error)
        return ""


def _only(batch: list[str]) -> str:
    return batch[0]
