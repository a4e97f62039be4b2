"""Latency: interleaved calls, contention, fresh processes."""
