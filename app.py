"""Launch the page: `python app.py`

It takes no options: its settings are environment variables, such as `PORT=7861 python app.py`. docs/settings.md lists
them. No model is loaded before the first question. A Space starts this program, too.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and len(sys.argv) > 1:  # before the imports, which take seconds
    if sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip())
        sys.exit()
    print(f"app.py takes no options, such as {sys.argv[1]}: `python app.py --help` says more.", file=sys.stderr)
    sys.exit(2)

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

from starlette.middleware import Middleware

from inference.arena.votes import Votes
from inference.arena.votes_hub import VotesPush
from inference.errors import LabError
from inference.lab import Lab
from inference.metrics import configure_log
from inference.settings import Settings, check_versions, zero_gpu
from inference.visitors.limits import VisitorLimits
from ui.conversations.sidebar import SCRIPT
from ui.mcp_tools import limit_tools
from ui.openai_api.routes import openai_routes
from ui.operations import EndSignal, UnreadableRequests, end, operator_routes
from ui.page import build
from ui.style.theme import CSS, HEAD, THEME

OTHER_THREADS = 48  # for event handlers beside answers, so that the rest of the page never waits for an answer
VISITS = 1000  # conversations kept for open pages; each takes about 80 KB


def main() -> None:
    """Launch the page and run until the process is asked to end."""
    check_versions()
    settings = Settings.from_environment()
    configure_log(settings.log_json)
    lab, votes = Lab.from_environment(), Votes(settings.votes, settings.votes_per_hour)
    limits = VisitorLimits.from_settings(settings)
    page = build(lab, votes, limits)
    page.queue(max_size=settings.queue)
    if zero_gpu():
        lab.engines.get("pytorch")  # ZeroGPU asks at the launch what will want its GPU
    votes_push = VotesPush(votes, settings.votes_repo) if settings.votes_repo else None
    signal = EndSignal()
    if lab.models.replicas:
        lab.models.replicas.watch()
    try:
        page.launch(
            server_port=settings.port, theme=THEME, css=CSS, head=HEAD + SCRIPT, prevent_thread_lock=True,
            max_threads=settings.answers_at_once + OTHER_THREADS, max_file_size=settings.upload_bytes,
            state_session_capacity=VISITS, footer_links=[], mcp_server=True,
            run_history=False,  # it would fill the storage that conversations are kept in
            app_kwargs={
                "middleware": [Middleware(UnreadableRequests)],
                "routes": [*operator_routes(page, lab), *openai_routes(lab, limits, settings)],
            },
        )  # fmt: skip
    except OSError as error:
        raise LabError(
            f"Port {settings.port} is not available: stop the program that uses it, or set PORT to another port."
        ) from error
    limit_tools(page)
    signal.wait()
    end(page, lab, votes_push)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
