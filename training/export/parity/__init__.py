"""The parity check: does an exported file answer like the PyTorch model? `check.check` runs it.

- `reference`: what the PyTorch model does with a fixed set of conversations
- `measure`: what llama.cpp does with them, in a process of its own
- `limits`: how far a file may be off
- `cost`: what a quantization costs the base on the same conversations
- `check`: all files of a model folder, and the report
"""
