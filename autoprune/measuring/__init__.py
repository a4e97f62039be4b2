"""Model -> cost on the target: FLOPs, parameters, size, measured latency."""
