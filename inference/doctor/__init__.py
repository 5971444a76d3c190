"""Examine anyone's model file or adapter: what it is, what is wrong with it, what users see of that, and the fix.

- `examine`: finds the files of a target, and examines them in a confined process
- `report`: the report with its findings, and the exit code that it means
- `facts`: what a file says about itself, for GGUF files and folders of safetensors alike; `reading` fills it
- `explanations`: the kinds of findings
- `checks`: the findings of one file, and those beside the original
- `computing`: what llama.cpp and PyTorch compute, layer by layer
"""
