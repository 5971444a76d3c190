"""The findings. `model_alone` needs one file; `beside_original` and `weights` compare it with the original.
`prompts` and `adapter_layers` do both."""
