"""What all benchmarks stand on: frame (check, time, write), timing, breakdown, energy, machine, report."""
