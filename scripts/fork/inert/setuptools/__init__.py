"""Stands in for setuptools where a release is to be fetched, not built. See `fork.sdist.download`."""
