"""Who may teach and train from the page: on this machine whoever sits at it, on a Space its owner alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from inference.errors import LabError
from inference.settings import variable

PACKAGES = ("datasets", "peft", "trl")  # of requirements-train.txt
INSTALL = "To train models from this page, run `pip install -r requirements-train.txt` and start it again."


def is_installed() -> bool:
    """Whether the packages that training needs are installed. Imports none of them."""
    return all(find_spec(package) is not None for package in PACKAGES)


def is_offered() -> bool:
    """Whether this page has a place to train at all: not on a Space that cannot, or whose owner cannot sign in.

    Without SYSTEM=spaces Gradio imitates the sign-in for developers, and everybody would be the owner.
    """
    return not on_space() or (is_installed() and bool(variable("OAUTH_CLIENT_ID")) and variable("SYSTEM") == "spaces")


def on_space() -> bool:
    """Whether this is a Space."""
    return variable("SPACE_ID") is not None


def check_owner(request: gr.Request, profile: gr.OAuthProfile | None) -> None:
    """Raise LabError unless who sends the request may train. Every event handler of the tabs calls it."""
    if on_space():
        if not (is_offered() and profile and is_space_owner(profile)):
            raise LabError("Only the owner of this Space can train here: sign in with that account.")
    elif not is_local(request):
        raise LabError("Teaching and training are only possible on the machine that runs this page: open it there.")


def may_train(request: gr.Request, profile: gr.OAuthProfile | None) -> bool:
    """Whether who sends the request may train."""
    try:
        check_owner(request, profile)
    except LabError:
        return False
    return True


def is_space_owner(profile: Mapping[str, Any]) -> bool:
    """Whether a signed-in user owns this Space: its account, or whoever created it for an organization."""
    owner = (variable("SPACE_ID") or "").partition("/")[0]
    creator = variable("SPACE_CREATOR_USER_ID")
    name, number = profile.get("preferred_username"), profile.get("sub")
    return bool((owner and name == owner) or (creator and number == creator))


def is_local(request: gr.Request) -> bool:
    """Whether a request comes from this machine, through no proxy or tunnel, and from no other site's page."""
    headers: Any = request.headers or {}
    if any(headers.get(name) for name in ("x-forwarded-for", "forwarded", "x-real-ip")):
        return False
    host, origin = headers.get("host") or "", headers.get("origin")
    client = getattr(request.client, "host", None) or ""
    names = [client, urlsplit(f"//{host}").hostname or "", *([urlsplit(origin).hostname or ""] if origin else [])]
    return all(is_loopback(name) for name in names)


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        address = ip_address(name)
    except ValueError:
        return name == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
