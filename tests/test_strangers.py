"""A public Space: whoever calls the endpoints of training by the API is refused on the server, unless signed in as its
owner."""

from __future__ import annotations

import hashlib
import json
import time
from base64 import b64encode

import httpx
import pytest
from itsdangerous import TimestampSigner
from test_train_tab import HANDLERS, OWNER, QUIETLY, handlers_of

from inference.arena.votes import Votes
from inference.catalog import Catalog
from inference.lab import Lab
from inference.settings import Settings
from ui.page import build

SIGNED_IN = {"oauth_info": {"userinfo": OWNER, "access_token": "", "scope": "", "expires_at": time.time() + 3600}}


@pytest.fixture(scope="module")
def public_space(tmp_path_factory):
    """The address of ada's public Space with its page and the folder of its jobs."""
    folder = tmp_path_factory.mktemp("space")
    with pytest.MonkeyPatch.context() as patch:
        oauth = {"CLIENT_ID": "x", "CLIENT_SECRET": "secret", "SCOPES": "openid"}
        for name, value in oauth.items():
            patch.setenv(f"OAUTH_{name}", value)
            patch.setattr(f"gradio.oauth.OAUTH_{name}", value)
        patch.setattr("gradio.oauth.OPENID_PROVIDER_URL", "https://hub.invalid")
        for name, value in {"SPACE_ID": "ada/lab", "SYSTEM": "spaces", "XDG_CACHE_HOME": str(folder)}.items():
            patch.setenv(name, value)
        lab = Lab(Catalog.read(Settings().catalog))
        page = build(lab, Votes(folder / "votes.sqlite"))
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False)
        yield address, page, folder
        page.close(verbose=False)
        lab.close()


def call(address: str, number: int, values: int, cookie: str = "") -> str:
    """Call an event handler as a browser does; returns the last event of its answer."""
    headers = {"cookie": f"session={cookie}"} if cookie else {}
    body = {"fn_index": number, "data": [None] * values, "session_hash": f"visit{number}", "trigger_id": None}
    with httpx.Client(base_url=f"{address}gradio_api/queue/", headers=headers, timeout=60) as client:
        client.post("join", json=body).raise_for_status()
        with client.stream("GET", "data", params={"session_hash": body["session_hash"]}) as events:
            return next(line for line in events.iter_lines() if "process_completed" in line)


@pytest.mark.parametrize("name", HANDLERS)
def test_a_stranger_who_calls_an_endpoint_of_a_public_space_is_refused(public_space, name):
    address, page, folder = public_space
    found = handlers_of(page, "TrainTab", "Trainings")
    assert set(found) == set(HANDLERS) and not handlers_of(page, "LessonsTab", "TeachPanel.save")
    number = found[name]
    handler = page.fns[number]
    assert handler.api_visibility == "private"
    forged = TimestampSigner("guessed").sign(b64encode(json.dumps(SIGNED_IN).encode())).decode()
    for cookie in ("", forged):
        answer = call(address, number, len(handler.inputs), cookie)
        refused = "Only the owner of this Space can train here" in answer
        assert refused if name not in QUIETLY else '"visible": true' not in answer
    assert not (folder / "llama-finetuning-lab" / "training").exists()


def test_the_owner_of_a_public_space_is_let_in(public_space):
    address, page, _ = public_space
    secret = hashlib.sha256(b"secret-v4").hexdigest()  # as Gradio signs its cookie
    cookie = TimestampSigner(secret).sign(b64encode(json.dumps(SIGNED_IN).encode())).decode()
    number = handlers_of(page, "TrainTab")["TrainTab.show_for_owner"]
    assert '"visible": true' in call(address, number, 0, cookie).replace('":true', '": true')
