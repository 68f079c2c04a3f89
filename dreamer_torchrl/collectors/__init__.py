"""Environments as endless streams of steps, and what acts in them."""
