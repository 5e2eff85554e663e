"""From radiographs and weights to files."""

from drr2ct.pipeline.reconstruction.writing import reconstruct

__all__ = ["reconstruct"]
