"""(model, Plan) -> Pruned: a smaller model and the masks it still carries."""
