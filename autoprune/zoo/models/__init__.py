"""Bundled model factories: `zoo:NAME` is the function that the file NAME exports."""
