"""What the files of a model say about it, read without any runtime: a check before PyTorch or llama.cpp opens them.

Anyone can have written these files. Each module reads one of them with bounds on size, count and depth.

- `adapter_config`: PEFT's `adapter_config.json`
- `gguf_header`: the metadata at the start of a GGUF file
- `gguf_file`: all of a GGUF file: its metadata and its tensors
- `base_names`: whether two names mean the same base model

Knows no engine, and sends no requests.
"""
