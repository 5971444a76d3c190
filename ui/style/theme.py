"""The theme of the page: Gradio's own with system fonts and one accent colour. It loads nothing from the network."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from ui.style.icons import with_icons

FOLDER = Path(__file__).parent
SHEETS = ("frame", "conversation", "composer", "drawers", "history", "compare", "models", "train")

THEME = gr.themes.Default(
    primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)

# Rules that the theme has no setting for.
CSS = with_icons("\n".join((FOLDER / f"{sheet}.css").read_text(encoding="utf-8") for sheet in SHEETS))

# Answers are Markdown with pictures, whose addresses a model writes. The browser may load pictures, sound and video
# of this server only.
HEAD = f"""
<meta http-equiv="Content-Security-Policy"
  content="img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; form-action 'self'">
<script>
{(FOLDER / "result_stream.js").read_text(encoding="utf-8")}
{(FOLDER / "page.js").read_text(encoding="utf-8")}
</script>
"""
