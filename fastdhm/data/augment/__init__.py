"""What is done to a batch on the device: normalising, flips, shrinking (transforms)."""
