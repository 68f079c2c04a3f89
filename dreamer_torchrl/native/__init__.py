"""The loops over time in C, for the CPU: built on first use where there is a compiler, else done without."""
