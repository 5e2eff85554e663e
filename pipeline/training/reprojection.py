"""Notes how far validated volumes are from the radiographs they came from: what a verdict on a stranger's goes by."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events

from drr2ct.pipeline.evaluation.figures import REPROJECTION_FIGURES
from drr2ct.pipeline.evaluation.metrics import PredictionAndRadiographs, ReprojectionMetric
from drr2ct.pipeline.evaluation.reprojection import reprojection_reference
from drr2ct.transforms.geometry import BiplanarGeometry

PATIENTS = 16
"""Of a larger validation set, the first so many (of this process) are projected."""


class NoteReprojection:
    """Collect an evaluator's reprojection errors.

    Args:
        geometry: the network's.
    """

    def __init__(self, geometry: BiplanarGeometry) -> None:
        self._metric = ReprojectionMetric(geometry)
        self._pick = PredictionAndRadiographs()
        self._found: list[float] = []

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        evaluator.add_event_handler(Events.EPOCH_STARTED, self._started)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def reference(self) -> dict[str, Any] | None:
        """Of the last validation; see :func:`~drr2ct.pipeline.evaluation.reprojection.reprojection_reference`."""
        return reprojection_reference(self._found)

    def _started(self, evaluator: Engine) -> None:
        self._found = []
        self._metric.reset()

    def _iteration_completed(self, evaluator: Engine) -> None:
        if len(self._found) < PATIENTS:
            pairs = zip(*self._pick(evaluator.state.output), strict=True)
            finite = [pair for pair in pairs if pair[0].isfinite().all()]  # others are named elsewhere
            if not finite:
                return
            rows = self._metric(*map(list, zip(*finite, strict=True)))
            self._found += rows[:, REPROJECTION_FIGURES.index("reprojection_relative")].tolist()
