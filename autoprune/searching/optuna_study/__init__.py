"""Optuna: ask, promote, tell, constraints, samplers, storage, resume."""
