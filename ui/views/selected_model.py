"""The selected model's card before the first question: its name, what it is, and its facts in small print."""

from __future__ import annotations

import html

from inference.catalog import Entry


def selected_model_html(entry: Entry, base: Entry, state: str, engine: str) -> str:
    """Return the summary of `entry`, its accuracy compared with its base, its state and its engine."""
    card = entry.card
    facts = [f"on {base.name}"] if base is not entry else []
    facts += [card.lora] if card.lora else []
    for group, share in card.accuracy.items():
        if "never seen" not in group:
            of_base = base.card.accuracy.get(group)
            compared = f" (base {of_base:.0%})" if of_base is not None and base is not entry else ""
            facts.append(f"{group} {share:.0%}{compared}")
    facts += [state, engine]
    line = html.escape(" · ".join(facts)).replace("%", "\u00a0%")
    link = f' · <a href="{html.escape(card.url)}" target="_blank" rel="noopener">model card ↗</a>' if card.url else ""
    return (
        f'<div id="card"><h2>{html.escape(entry.name)}</h2><p>{html.escape(card.summary)}</p>'
        f'<p class="facts">{line}{link}</p></div>'
    )
