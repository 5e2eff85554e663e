"""The MONAI bundles that ship with the package: configurations, metadata and documentation."""
