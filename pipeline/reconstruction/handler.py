"""Between the engine and the files: each prediction is written as it comes, and the console shows how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ignite.engine import Engine, Events
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from drr2ct.pipeline.checkpoints.description import network_sentence
from drr2ct.pipeline.reconstruction.job import ReconstructionJob
from drr2ct.pipeline.reconstruction.result import Result, make_result
from drr2ct.pipeline.reconstruction.writing import write_result
from drr2ct.pipeline.running.engines import batch_patients, engine_output
from drr2ct.transforms.validation import InputError


class WriteReconstructions:
    """Write what an evaluator predicts as a job wants it, and show how far it is.

    Args:
        job: what goes where.
        precision: that the network runs in, for the record.
    """

    def __init__(self, job: ReconstructionJob, precision: str) -> None:
        self.job = job
        self.precision = precision
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=job.console,
            transient=True,
            disable=not job.console.is_terminal,  # there, each patient's lines have to do
        )
        self._done = 0
        self._said: set[str] = set()
        self._hooks: list[Any] = []

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        evaluator.add_event_handler(Events.STARTED, self._started)
        evaluator.add_event_handler(Events.GET_BATCH_COMPLETED, self._loaded)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        evaluator.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._stop)

    def _started(self, evaluator: Engine) -> None:
        job, network = self.job, evaluator.network  # type: ignore[attr-defined]
        job.say(f"{network_sentence(job.description)}, on {next(network.parameters()).device} in {self.precision}")
        finished = len(job.items) - len(job.pending) - len(job.failures)
        if finished:
            job.say(f"finished before, and kept: {finished} of {len(job.items)} patients")
        self._began = self._last = time.monotonic()
        self._task = self._progress.add_task("reading", total=float(len(job.pending)), count="")
        self._progress.start()
        job.watch("reading")
        self._hooks = _on_parts(network, self._part_done)

    def _part_done(self, share: float) -> None:
        self._progress.update(self._task, completed=self._position() + share)
        self.job.watch("network", share)

    def _position(self) -> int:
        """Patients behind us, failed ones included."""
        return self._done + sum(str(item["patient"]) in self.job.failures for item in self.job.pending)

    def _loaded(self, evaluator: Engine) -> None:
        (patient,) = batch_patients(evaluator.state.batch)
        self._progress.update(self._task, completed=self._position(), description=patient)
        self.job.watch("network")

    def _iteration_completed(self, evaluator: Engine) -> None:
        job = self.job
        ((patient, sample, covered, read, doubts),) = zip(
            batch_patients(evaluator.state.batch),
            engine_output(evaluator),
            _of_each(evaluator, "covered"),
            _sentences(evaluator, "assumptions"),
            _sentences(evaluator, "warnings"),
            strict=True,
        )
        try:
            job.watch("comparing")
            image = sample["image"].detach().cpu().as_subclass(Tensor)
            result = make_result(job, patient, sample["pred"], image, covered, read, doubts)
            self._tell(result)
            job.watch("writing")
            made = write_result(job, result, self.precision)
        except InputError as mistake:
            if job.alone or isinstance(mistake.__cause__, OSError):  # the disk fails the next patient too
                raise
            job.fail(patient, mistake)
            return
        self._done += 1
        now = time.monotonic()
        rate = 60 * self._done / (now - self._began)
        count = f"{self._done} of {len(job.pending)}, {rate:.1f} a minute"
        self._progress.update(self._task, completed=self._position(), description="reading", count=count)
        job.say(f"{made}  {now - self._last:.1f} s" + ("" if job.alone else f", {rate:.1f} patients a minute"))
        self._last = now

    def _tell(self, result: Result) -> None:
        """Print what was assumed (of several patients what is new; each record has all), and how well it fits."""
        say = self.job.say
        if not self.job.alone:
            say(f"{result.patient}:")
        for text in result.assumptions:
            if text not in self._said:
                self._said.add(text)
                say(f"  assumed: {text}")
        for text in result.warnings:
            say(f"  warning: {text}")
        say(f"  {result.reprojection_sentence}")

    def _stop(self, *args: Any) -> None:
        self._progress.stop()
        for hook in self._hooks:
            hook.remove()
        if len(args) > 1 and isinstance(args[1], BaseException):
            raise args[1]  # ignite swallows an exception that a handler has seen


def _of_each(evaluator: Engine, name: str) -> Any:
    """An item of the batch, which the engine may have decollated, per patient."""
    batch: Any = evaluator.state.batch
    return batch[name] if isinstance(batch, Mapping) else [sample[name] for sample in batch]


def _sentences(evaluator: Engine, name: str) -> list[list[str]]:
    """What reading the batch's radiographs assumed or warns of, per patient."""
    texts = _of_each(evaluator, name)
    return [str(text).splitlines() for text in ([texts] if isinstance(texts, str) else texts)]


def _on_parts(network: nn.Module, done: Callable[[float], None]) -> list[Any]:
    """Call ``done`` with the share of the network's parts that have run, after each."""
    parts = [
        part
        for child in network.children()
        for part in (child if isinstance(child, nn.ModuleList) else [child])
        if any(True for _ in part.parameters())
    ]

    def hook(number: int) -> Callable[..., None]:
        return lambda *_: done(number / (len(parts) + 1))

    return [part.register_forward_hook(hook(number)) for number, part in enumerate(parts, 1)]
