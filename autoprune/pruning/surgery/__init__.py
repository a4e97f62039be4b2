"""What changes a module, and knows nothing of groups."""
