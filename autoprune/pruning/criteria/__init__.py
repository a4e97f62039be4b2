"""How much each element of a parameter matters: one file, one criterion."""
