"""What a file computes beside the original on fixed prompts. `beside` compares `llamacpp_layers` and
`pytorch_layers`."""
