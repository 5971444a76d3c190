"""Groups of Gradio components and their state, which the tabs share."""
