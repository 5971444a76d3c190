"""How the page looks: Gradio's own theme with the system's fonts and one accent colour. Nothing is fetched."""

from __future__ import annotations

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)

# Only what the theme can't reach.
CSS = """
.gradio-container {max-width: 860px !important; margin: 0 auto !important;}
.card, .figures, .marker {color: var(--body-text-color); opacity: 0.75;}
.figures, .marker {font-size: var(--text-sm);}
.figures summary {cursor: pointer; list-style: none;}
.marker {display: block; text-align: center;}
#refresh {max-width: 56px;}
.notice p {border-left: 3px solid var(--color-accent); padding: 4px 12px;}
footer {display: none !important;}
@media (max-width: 480px) {.examples button {min-width: 100% !important;}}
"""

# Gradio has no keyboard shortcuts: Escape presses the stop button.
HEAD = """
<script>
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector("#stop")?.click();
});
</script>
"""
