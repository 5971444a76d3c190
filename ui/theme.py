"""The theme of the page: Gradio's own with system fonts and one accent colour. It loads nothing from the network."""

from __future__ import annotations

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)

# Rules that the theme has no setting for.
CSS = """
.gradio-container {width: 100%; max-width: 860px !important; margin: 0 auto !important;}
.card, .figures, .marker {color: var(--body-text-color); opacity: 0.75;}
.figures, .marker {font-size: var(--text-sm);}
.figures summary {cursor: pointer; list-style: none;}
.marker {display: block; text-align: center;}
#refresh {max-width: 56px;}
.notice p {border-left: 3px solid var(--color-accent); padding: 4px 12px;}
#asked p {text-align: right; font-weight: 600; overflow-wrap: anywhere;}
#answers > * {min-width: min(200px, 100%) !important;}
.answer h3 {margin: 0 0 6px; overflow-wrap: anywhere;}
.answer .text {white-space: pre-wrap; overflow-wrap: anywhere;}
.answer .failed {border-left: 3px solid var(--color-accent); padding: 4px 12px;}
mark {color: inherit; background: var(--color-accent-soft); text-decoration: underline; text-underline-offset: 3px;}
.votes button {border: 1px solid var(--color-accent);}
#ranking table, #ranking tr {border: none; font-size: var(--text-sm);}
#ranking td, #ranking th {
  border: none; border-bottom: 1px solid var(--border-color-primary); padding: 4px 10px 4px 0; text-align: left;
}
footer {display: none !important;}
@media (max-width: 480px) {.examples button, .question-row > :first-child {min-width: 100% !important;}}
input[role=combobox] {text-overflow: ellipsis; padding-right: 24px !important;}  /* ends before the arrow */
#chat .placeholder {padding: 0 12px;}
#models {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr));}
.model {
  gap: 8px; padding: 8px; border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg);
  background: var(--block-background-fill);
}
.model:has(button.open) {grid-column: 1 / -1;}
.model .choices {align-items: center; margin-top: auto;}
.model .choices .block {border: none !important;}
.model h3 {margin: 0;}
.model p, .model dl {margin: 4px 0; font-size: var(--text-sm); overflow-wrap: anywhere;}
.model a {padding: 0; color: inherit;}
.model dl {display: grid; grid-template-columns: auto 1fr; gap: 2px 10px;}
.model dt {opacity: 0.8;}
.model dd {margin: 0;}
.run-record {columns: 280px 2; column-gap: 24px;}
.run-record h4 {margin-top: 0;}
.run-record section {break-inside: avoid; margin-bottom: 16px;}
.run-record pre {white-space: pre-wrap; font-size: var(--text-sm);}
.run-record table, #model-differences table {
  width: 100%; table-layout: fixed; border: none; margin: 4px 0; font-size: var(--text-sm); text-align: left;
}
.run-record :is(tr, th, td), #model-differences :is(tr, th, td) {border: none; padding: 3px 10px 3px 0;}
.run-record :is(td, th):last-child, #model-differences :is(td, th):last-child {padding-right: 0;}
.run-record th, #model-differences :is(td, th) {font-weight: normal; overflow-wrap: anywhere; vertical-align: top;}
#model-differences :is(thead th, [scope=rowgroup]) {font-weight: 600;}
.run-record caption, #model-differences caption {text-align: left; font-weight: 600;}
.curve {width: 100%; max-width: 420px; font-size: 11px; fill: currentColor;}
.curve line {stroke: var(--border-color-primary);}
.curve polyline {fill: none; stroke: var(--color-accent); stroke-width: 1.5;}
.bar {position: relative; height: 12px; background: var(--border-color-primary);}
.bar i {position: absolute; inset: 0 auto 0 0; background: var(--color-accent);}
.bar b {position: absolute; top: 4px; height: 4px; min-width: 2px; background: currentColor;}
.gradio-container {overflow: clip !important;}  /* hides overflow, but allows sticky elements */
#model-differences {position: sticky; bottom: 0; z-index: 5;}
#model-differences {background: var(--background-fill-primary); border-top: 2px solid var(--color-accent) !important;}
html:has(#model-differences details[open]) {scroll-padding-bottom: 60vh;}  /* keeps the focused element in view */
#model-differences [role=region] {max-height: 55vh; overflow: auto;}
"""

# Answers are Markdown with pictures, whose addresses a model writes. The browser may load pictures, sound and video
# of this server only. Gradio has no keyboard shortcuts: Escape presses the stop button of the open tab.
HEAD = """
<meta http-equiv="Content-Security-Policy"
  content="img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; form-action 'self'">
<script>
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") [...document.querySelectorAll(".stop")].find((button) => button.offsetParent)?.click();
});
</script>
"""
