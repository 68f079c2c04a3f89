"""Settings: their schema, and how overrides become them."""
