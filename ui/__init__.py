"""The Gradio page: one module a tab, its components and its views. No model code."""
