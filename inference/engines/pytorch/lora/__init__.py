"""LoRA adapters of the PyTorch engine: `adapter_files` reads one, `mixed_lora` runs all of a base at once."""
