"""What is measured against: an eager trainer (model, data, run), other losses; same_step holds the two together."""
