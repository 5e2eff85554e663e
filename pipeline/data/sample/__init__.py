"""The sample: one real chest CT, its provenance and licence beside it."""
