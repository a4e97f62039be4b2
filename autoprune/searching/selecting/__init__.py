"""Which plans are trained, and which of the trained is the best inside the budget."""
