"""The PyTorch engine: safetensors models on a GPU or a CPU."""
