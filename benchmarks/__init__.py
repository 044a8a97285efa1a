"""Benchmarks of mammod beside the programs that would be used instead."""
