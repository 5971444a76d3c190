"""The recipe's way through to PEFT and TRL: which of their options a recipe may set, and their settings for a run.

`option_check.py` validates a mapping against a library's own settings, `peft_options.py` makes `LoraConfig`,
`trl_options.py` makes `SFTConfig` or `DPOConfig`. The libraries stay the source of names, types and defaults.
"""
