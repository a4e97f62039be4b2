"""Training, by one loop: the dense baseline, and the recovery of what was pruned."""
