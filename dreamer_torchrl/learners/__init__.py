"""One update: losses, gradients, optimizer, target critic."""
