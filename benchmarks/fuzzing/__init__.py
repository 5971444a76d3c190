"""The parts of `benchmarks.fuzz`: mutations of inputs, and one target for each kind of input."""
