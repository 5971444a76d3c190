"""Read files into facts: `gguf_facts` and `adapter_gguf` from GGUF, `folder_facts` and `adapter_folder` from
safetensors. `layer_names` gives the layers of both one name."""
