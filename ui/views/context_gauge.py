"""How full the model's context is after an answer, as a small meter with a sentence."""

from __future__ import annotations

from inference.engines import Figures


def context_gauge_html(figures: Figures) -> str:
    """Return the tokens of the conversation, the tokens that are left, and the turns that no longer fit. Returns "" if
    the engine does not know the size of the context."""
    if not figures.context_tokens:
        return ""
    used = figures.prompt_tokens + figures.completion_tokens
    left = max(0, figures.context_tokens - used)
    text = f"Context: {used:,} of {figures.context_tokens:,} tokens, {left:,} left"
    if figures.dropped_turns:
        turns = "turn" if figures.dropped_turns == 1 else f"{figures.dropped_turns} turns"
        text += f" · without the oldest {turns}"
    return f'<meter min="0" max="{figures.context_tokens}" value="{used}" aria-hidden="true"></meter> {text}'
