"""The ranking as an HTML table with an explanation below."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from inference.arena.ranking import Standing

HEADINGS = ("Rank", "Model", "Preferred", "Votes")
EXPLANATION = (
    "<em>Preferred</em>: how likely visitors prefer the model to one of average strength (Bradley–Terry model), with "
    "the 95 % interval."
)


def ranking_table(standings: Sequence[Standing], votes: int, name_of: Callable[[str], str]) -> str:
    """Return the standings as HTML. `name_of` returns a model's name by its id."""
    if not standings:
        return "<p>No votes yet: ask a question in blind mode, then vote for the better answer.</p>"
    rows = []
    for place, standing in enumerate(standings, 1):
        rank, preferred = "", "too few votes"
        if standing.strength is not None and standing.low is not None and standing.high is not None:
            rank = str(place)
            bounds = f"{100 * standing.low:.0f}–{100 * standing.high:.0f}"
            preferred = f"{100 * standing.strength:.0f}\u00a0% ({bounds})"
        cells = (rank, html.escape(name_of(standing.model)), preferred, str(standing.votes))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"{table}<p>Based on {votes} blind vote{'s' * (votes != 1)}. {EXPLANATION}</p>"
