"""Models on the Hugging Face Hub: discovery, file lists, downloads, and the copies on this disk.

Knows no engine and no page.
"""
