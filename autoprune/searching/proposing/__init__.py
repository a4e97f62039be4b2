"""Where plans come from, and how they are scaled to the budget."""
