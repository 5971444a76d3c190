"""Read files into facts: `gguf_facts` from GGUF, `folder_facts` from safetensors. `layer_names` has one name for a
layer of both.
"""
