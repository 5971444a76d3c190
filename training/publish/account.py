"""The user's account on the Hub: who may write where, and requests that are repeated if they fail for a moment.

The token comes from the environment or from `hf auth login`. Only huggingface_hub reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from inference.errors import LabError
from inference.hub import client

T = TypeVar("T")


def account(namespace: str) -> HfApi:
    """The Hub's client for writing to `namespace`. Raises LabError if there is no token, if the token is read-only, or
    if the namespace is someone else's."""
    if get_token() is None:
        raise LabError(
            "Publishing needs a token: create one with write access at https://huggingface.co/settings/tokens, then "
            "run `hf auth login` or set HF_TOKEN."
        )
    api = HfApi(library_name="llama-finetuning-lab")
    user = who_am_i(api, namespace)
    role = user.get("auth", {}).get("accessToken", {}).get("role", "write")
    if role == "read":
        raise LabError("This token is read-only: create one with write access and set HF_TOKEN to it.")
    own = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if namespace not in own:
        raise LabError(
            f"{namespace} is not your account: this token belongs to {user['name']}. Use {' or '.join(own)}."
        )
    return api


def who_am_i(api: HfApi, namespace: str) -> dict:
    """The Hub's description of the token's owner. Raises LabError if the Hub does not accept the token."""
    try:
        with client.translate_hub_errors(namespace, ""):
            return with_retries(api.whoami)
    except LabError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and cause.response is not None and cause.response.status_code == 401:
            raise LabError(
                "The Hub does not accept this token: create a new one with write access and set HF_TOKEN to it."
            ) from error
        raise


def with_retries(request: Callable[[], T]) -> T:
    """What `request` returns. It is repeated after a pause if the network fails or the Hub is busy; huggingface_hub
    itself does not repeat commits. Raises what the last try raised."""
    return client.with_retries(request, client.DownloadControl())
