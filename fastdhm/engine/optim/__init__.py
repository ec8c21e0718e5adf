"""What moves the weights: optimizer, schedule (the learning rate and what else changes by step), average (EMA)."""
