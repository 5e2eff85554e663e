"""From radiographs and weights to files."""

from drr2ct.pipeline.reconstruction.run import reconstruct

__all__ = ["reconstruct"]
