"""Where the latency is, layer by layer."""
