"""What the machine does wrong, in one sentence that says what to do: full disks, readers that die or stall."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch

from drr2ct.transforms.validation import InputError

_NO_GPU = (
    "Torch not compiled with CUDA enabled",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "invalid device ordinal",
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NUMPY_FULL = "requested and"  # "4096 requested and 1000 written": NumPy's, without a number


def disk_is_full(error: OSError) -> bool:
    """Whether a file could not be written for want of space (or of quota)."""
    return error.errno in _FULL or (error.errno is None and _NUMPY_FULL in str(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then what it was raised from or in the handling of, down to the first; each once.

    What is raised from itself, or from what it has caused, is a circle.
    """
    seen: list[BaseException] = []
    while error is not None:
        yield error
        seen.append(error)
        before = (error.__cause__, error.__context__)
        error = next((one for one in before if one is not None and not any(one is other for other in seen)), None)


def origin(mistake: BaseException, error: BaseException) -> BaseException | None:
    """What to raise a mistake from that was found behind an error: what it had before, if it is one of its causes."""
    return mistake.__cause__ if any(cause is mistake for cause in causes(error)) else error


class MachineFaultError(InputError):
    """The machine, not the input, is at fault; the message says what to do."""


def refuse_missing_device(device: str) -> None:
    """Refuse a device that PyTorch cannot compute on here.

    Raises:
        InputError: for anything but ``cpu`` and, with a GPU, ``cuda``.
    """
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"device {device!r} is not to be had here; choose cpu, or cuda on a machine with a GPU.")


def explain_fault(error: BaseException | None) -> InputError | None:
    """The machine's fault behind an exception, if it is one that can be named; causes are looked through."""
    for cause in causes(error):
        if isinstance(cause, MachineFaultError):
            return cause
        text = str(cause)
        where = f" ({cause.filename})" if isinstance(cause, OSError) and cause.filename else ""
        if (isinstance(cause, OSError) and disk_is_full(cause)) or "(os error 28)" in text:  # Rust's, of safetensors
            return MachineFaultError(
                f"the disk is full{where}; what was complete before is intact: free space, or set output_dir and "
                "cache_dir elsewhere, and give the same command again."
            )
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            return InputError(f"a name is too long for the file system{where}; give a shorter one.")
        if isinstance(cause, OSError) and cause.errno == errno.EROFS:
            return MachineFaultError(
                f"the file system is read-only{where}; what was complete before is intact: make it writable, or set "
                "output_dir and cache_dir elsewhere, and give the same command again."
            )
        if isinstance(cause, (RuntimeError, AssertionError)) and any(sign in text for sign in _NO_GPU):
            return InputError(
                f"the GPU that was asked for is not there ({text.splitlines()[0].rstrip('.')}); choose another device, "
                "or install a torch that knows it."
            )
        if isinstance(cause, RuntimeError) and "DataLoader timed out" in text:
            return MachineFaultError(
                f"no data came from the loading processes in time ({text}); check that the storage answers, or raise "
                "loader_timeout, and give the same command again."
            )
        if isinstance(cause, RuntimeError) and "DataLoader worker" in text and ("killed" in text or "exited" in text):
            return MachineFaultError(
                f"a process that loads data has died ({' '.join(text.split())}); most often memory was short: lower "
                "num_workers, then give the same command again."
            )
    return None
