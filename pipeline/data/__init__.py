"""From a folder of studies to samples: DICOM series, preparation, data lists, checks, cache, loading, the sample CT."""
