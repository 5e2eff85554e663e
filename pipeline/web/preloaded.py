"""What the process that tasks are forked from imports once: all that they use, also what waits until it is used."""

import monai.engines  # noqa: F401

import drr2ct.pipeline.reconstruction.handler
import drr2ct.pipeline.reports.preview
import drr2ct.pipeline.web.tasks  # noqa: F401
from drr2ct.transforms import rtk

rtk.load()
