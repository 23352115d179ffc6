"""Stands in for setuptools where a release is to be fetched, not built. See `fork.source.download`."""
