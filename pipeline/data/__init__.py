"""From a folder of studies to samples: DICOM series, data lists, checks, cache, loading, the sample CT."""
