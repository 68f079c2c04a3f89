"""From environments to steps, from steps to batches."""
