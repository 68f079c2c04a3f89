"""Bridges to other implementations: official checkpoints and recordings."""
