"""Weights and cards of trained agents; installed as dreamer_torchrl.pretrained. See docs/checkpoints.md."""
