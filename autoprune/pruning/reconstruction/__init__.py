"""Layers of a cut model solved by least squares (He et al. 2017, arXiv:1707.06168)."""
