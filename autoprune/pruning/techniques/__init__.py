"""Which part of a group goes at a ratio: one file, one technique."""
