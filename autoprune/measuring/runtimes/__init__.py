"""What runs a model on the target; every runtime is one file here."""
