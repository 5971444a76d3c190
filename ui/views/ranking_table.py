"""The ranking as the page shows it: a table with a line below that says how to read it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from inference.arena.ranking import Standing

HEADINGS = ("Place", "Model", "Preferred", "Votes")
HOW_TO_READ = (
    "only those count. <em>Preferred</em> is how often a model would be preferred to one of average strength "
    "(Bradley–Terry), with the interval that holds it with 95 %."
)


def ranking_table(standings: Sequence[Standing], votes: int, name: Callable[[str], str]) -> str:
    """The standings as HTML, under the names that `name` gives to model ids."""
    if not standings:
        return "<p>No votes yet: ask a question in blind mode, then say which answer is better.</p>"
    rows = []
    for place, standing in enumerate(standings, 1):
        shown, preferred = "", "too few votes"
        if standing.strength is not None:
            shown = str(place)
            bounds = f"{100 * standing.low:.0f}–{100 * standing.high:.0f}"
            preferred = f"{100 * standing.strength:.0f}\u00a0% ({bounds})"
        cells = (shown, html.escape(name(standing.model)), preferred, str(standing.votes))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"{table}<p>From {votes} blind vote{'s' * (votes != 1)}; {HOW_TO_READ}</p>"
