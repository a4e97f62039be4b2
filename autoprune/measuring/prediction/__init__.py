"""Latencies foreseen from a short profile of the target."""
