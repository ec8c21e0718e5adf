"""The references: an eager trainer (model, data, run) and other losses; same_step compares engine and reference."""
