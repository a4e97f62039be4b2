"""Bundled data sets: `zoo:NAME` is the function that the file NAME exports; it returns Data."""
