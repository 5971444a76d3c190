"""The PyTorch engine: safetensors models on a GPU or a CPU. `zerogpu` is its form for ZeroGPU Spaces."""
