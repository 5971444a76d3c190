"""From a run to GGUF files, and the parity check of each file."""
