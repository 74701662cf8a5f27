"""Benchmark scores under layer plans: make, resume, read. The only room that imports lm-eval."""
