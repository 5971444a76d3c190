"""How the page looks: the theme, the style sheets, the icons, and the few lines of JavaScript that Gradio lacks."""
