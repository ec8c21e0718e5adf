"""What all benchmarks share: frame (check, time, write), timing, breakdown, energy, machine, report."""
