"""Layers with zeros on the kernel measured fastest for them."""
