"""The llama.cpp engine: GGUF models on a CPU."""
