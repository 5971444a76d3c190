"""The icons of round buttons, drawn as outlines in a square of 24 units. Style sheets name them as `ICON_name`."""

from __future__ import annotations

import urllib.parse

OUTLINES = {
    "mic": "<rect x='9' y='2' width='6' height='12' rx='3'/><path d='M5 11a7 7 0 0 0 14 0M12 18v4'/>",
    "send": "<path d='M12 20V5M5 12l7-7 7 7'/>",
    "stop": "<rect x='6' y='6' width='12' height='12' rx='2' fill='black'/>",
    "clip": (
        "<path d='M21 11.5l-8.6 8.6a5.6 5.6 0 0 1-8-8l8.7-8.6a3.7 3.7 0 0 1 5.3 5.3l-8.7 8.6"
        "a1.9 1.9 0 0 1-2.6-2.6l8-8'/>"
    ),
    "tune": "<path d='M4 7h9M19 7h1M4 17h3M13 17h7'/><circle cx='16' cy='7' r='2.5'/><circle cx='10' cy='17' r='2.5'/>",
    "plus": "<path d='M12 5v14M5 12h14'/>",
    "down": "<path d='M12 4v15M5 12l7 7 7-7'/>",
    "pen": "<path d='M4 20h4L19 9l-4-4L4 16z'/>",
    "save": "<path d='M12 4v11M7 11l5 5 5-5M5 20h14'/>",
    "open": "<path d='M12 15V4M7 8l5-5 5 5M5 20h14'/>",
    "page": "<path d='M6 3h8l5 5v13H6zM14 3v5h5M9 13h6M9 17h6'/>",
    "bin": "<path d='M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13'/>",
    "link": (
        "<path d='M10 14a4 4 0 0 0 6 0l3-3a4.2 4.2 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4.2 4.2 0 0 0 6 6l1-1'/>"
    ),
}


def with_icons(css: str) -> str:
    """Return a style sheet in which each `ICON_name` is the address of that icon, for the property `mask`."""
    for name, outline in OUTLINES.items():
        svg = (
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' stroke='black' stroke-width='2' "
            f"stroke-linecap='round' stroke-linejoin='round'>{outline}</svg>"
        )
        css = css.replace(f"ICON_{name}", f'url("data:image/svg+xml,{urllib.parse.quote(svg)}")')
    return css
