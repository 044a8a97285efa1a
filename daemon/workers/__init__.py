"""Processes that decode and classify, and the bundle they use."""
