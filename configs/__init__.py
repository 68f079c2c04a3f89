"""Configuration files: one folder per group, one YAML file per choice."""
