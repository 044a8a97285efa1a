"""Instances in: the listener, who may send, and what is accepted."""
