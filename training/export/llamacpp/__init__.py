"""llama.cpp's converters and its quantization.

- `convert`: fetches and runs the converters
- `llamacpp_converter`: what a converter runs in, a process of its own
- `staging`: the folder that a converter reads
- `quantize`: from f16 to fewer bits
"""
