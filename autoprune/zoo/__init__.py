"""What is bundled to try things on: models, data sets and metrics; imported by nobody, loaded by
name."""
