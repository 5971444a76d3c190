"""Published adapters on running replicas: loaded, replaced, unloaded, and loaded again after a restart."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import EMOJI, assert_refused, command
from huggingface_hub import CommitOperationAdd, HfApi, constants
from safetensors.torch import load_file, save

from inference.catalog import Catalog
from inference.errors import LabError
from inference.hub.cache import Cache
from inference.hub.client import TAG
from inference.lab import Lab
from inference.replicas import replica_adapters
from inference.replicas.adapter_check import check_adapter
from inference.replicas.replica_adapters import ReplicaAdapters
from inference.settings import Settings
from local_hub import LocalHub

pytestmark = pytest.mark.xdist_group("replicas")
CARD = f"---\nbase_model: adapters/nano\nlicense: mit\ntags: [{TAG}]\n---\n"
MAX_RANK = 16


class FakeReplica(BaseHTTPRequestHandler):
    """Answers as vLLM does (vllm/entrypoints/openai/models/serving.py). The server's `loaded` are paths by name."""

    def reply(self, status: int, value) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # noqa: N802
        cards = [{"id": "nano", "root": "adapters/nano", "parent": None}]
        cards += [{"id": name, "root": path, "parent": "nano"} for name, path in self.server.loaded.items()]
        self.reply(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path.split("/")[-1], body))
        loaded, name = self.server.loaded, body["lora_name"]
        if self.path.endswith("unload_lora_adapter"):
            del loaded[name]
        elif name in loaded and not body["load_inplace"]:
            return self.reply(400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}})
        elif (r := json.loads((Path(body["lora_path"]) / "adapter_config.json").read_text())["r"]) > MAX_RANK:
            text = f"Worker failed with error 'LoRA rank {r} is greater than max_lora_rank 16.', please check the stack"
            return self.reply(500, {"error": {"message": f"Call to add_lora method failed: {text}"}})
        else:
            loaded[name] = body["lora_path"]
        return self.reply(200, "Success")

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A fake replica. `restart` forgets its adapters, as a real one does."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), FakeReplica)
        self.loaded: dict[str, str] = {}
        self.requests: list[tuple[str, dict]] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture(scope="module")
def hub(hub, tmp_path_factory):
    """The local Hub, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield hub


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Two fake replicas, named by the environment."""
    servers = [Server(), Server()]
    urls = [f"http://127.0.0.1:{server.server_port}" for server in servers]
    monkeypatch.setenv("REMOTE_REPLICAS", ",".join(urls))
    monkeypatch.setenv("REMOTE_ADAPTERS", str(tmp_path / "shared"))
    monkeypatch.setenv("REMOTE_MAX_ADAPTERS", "2")
    monkeypatch.setenv("REMOTE_URL", urls[0])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def adapters(servers, hub):
    adapters = ReplicaAdapters.from_environment(Cache())
    assert adapters is not None
    yield adapters
    adapters.close()


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.read(Settings().catalog)


def put(hub: LocalHub, repo: str, **replaced: bytes | None) -> str:
    """Publish the emoji adapter in safetensors. Returns the commit. `replaced` has other contents by file name, with
    underscores for dots; None leaves a file out."""
    api = HfApi(endpoint=hub.url, token=hub.token(repo.split("/")[0]))
    api.create_repo(repo, exist_ok=True)
    files = {name: (EMOJI / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    files |= {"README.md": CARD.encode(), "adapter-f16.gguf": (EMOJI / "adapter-f16.gguf").read_bytes()}
    files |= {name: replaced[key] for name in files if (key := name.replace(".", "_")) in replaced}
    operations = [CommitOperationAdd(name, content) for name, content in files.items() if content is not None]
    return api.create_commit(repo, operations, commit_message="Publish").oid


def config(**changed) -> bytes:
    return json.dumps(json.loads((EMOJI / "adapter_config.json").read_text()) | changed).encode()


def weights(change) -> bytes:
    """The emoji adapter's file with each tensor changed by `change(name, tensor)`."""
    tensors = load_file(EMOJI / "adapter_model.safetensors")
    return save({name: change(name, tensor).contiguous() for name, tensor in tensors.items()})


def doubled(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A or B with twice the rank."""
    return torch.cat([tensor, tensor], 0 if "lora_A" in name else 1)


def test_a_published_adapter_is_in_every_replica_and_comes_back_after_a_restart(hub, servers, adapters, catalog):
    commit = put(hub, "me/First-lora")
    assert adapters.publish("me/First-lora", catalog) == "me/First-lora is loaded by 2 of 2 replicas."
    path = Path(os.environ["REMOTE_ADAPTERS"]) / "me--First-lora" / commit
    assert all(server.loaded == {"me/First-lora": str(path)} for server in servers)
    assert sorted(file.name for file in path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not any(file.is_symlink() for file in path.iterdir())  # the replicas may not have the Hub's cache
    port = servers[1].server_port
    servers[1].stop()
    put(hub, "me/Second-lora")
    said = adapters.publish("me/Second-lora", catalog)
    assert said == (
        "me/Second-lora is loaded by 1 of 2 replicas; the page loads it into the others when they are back."
    )
    servers[1] = Server(port)
    adapters.reconcile()
    assert servers[1].loaded == servers[0].loaded and len(servers[1].loaded) == 2


def test_the_page_watches_its_replicas(hub, servers, adapters, catalog, monkeypatch):
    put(hub, "me/Watched-lora")
    adapters.publish("me/Watched-lora", catalog)
    monkeypatch.setattr(replica_adapters, "WATCH_INTERVAL", 0.05)
    adapters.watch()
    servers[0].loaded.clear()
    deadline = time.monotonic() + 300
    while not servers[0].loaded and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "me/Watched-lora" in servers[0].loaded


def test_a_new_commit_replaces_the_old_one_in_place(hub, servers, adapters, catalog):
    put(hub, "me/Changing-lora")
    adapters.publish("me/Changing-lora", catalog)
    second = put(hub, "me/Changing-lora", adapter_config_json=config(lora_alpha=32))
    adapters.publish("me/Changing-lora", catalog)
    assert all(server.loaded["me/Changing-lora"].endswith(second) for server in servers)
    assert [body["load_inplace"] for _, body in servers[0].requests] == [False, True]
    assert len([each for each in (Path(os.environ["REMOTE_ADAPTERS"]) / "me--Changing-lora").glob("*/")]) == 1


def test_the_least_recently_used_is_unloaded_and_loaded_for_its_next_question(hub, servers, adapters, catalog):
    servers[0].loaded["nano-emoji"] = "/models/nano-emoji"  # the operator's own stays
    for name in ("A", "B"):
        put(hub, f"me/{name}-lora")
        adapters.publish(f"me/{name}-lora", catalog)
    adapters.use("me/A-lora")
    put(hub, "me/C-lora")
    adapters.publish("me/C-lora", catalog)
    assert list(servers[0].loaded) == ["nano-emoji", "me/A-lora", "me/C-lora"]
    assert set(adapters.names()) == {"me/A-lora", "me/B-lora", "me/C-lora"}
    adapters.use("me/B-lora")
    assert list(servers[1].loaded) == ["me/C-lora", "me/B-lora"]
    adapters.use("someone/else")  # unknown names load nothing
    shutil.rmtree(Path(os.environ["REMOTE_ADAPTERS"]) / "me--C-lora")  # so the owner takes one away
    adapters.reconcile()
    assert set(servers[1].loaded) == {"me/A-lora", "me/B-lora"}


def test_what_a_replica_refuses_is_said_once_and_not_listed(hub, servers, adapters, catalog):
    put(hub, "me/Large-lora", adapter_config_json=config(r=32), adapter_model_safetensors=None)
    with pytest.raises(LabError, match="has no adapter_model.safetensors"):
        adapters.publish("me/Large-lora", catalog)
    put(hub, "me/Large-lora", adapter_config_json=config(r=32), adapter_model_safetensors=weights(doubled))
    with pytest.raises(LabError, match=r"refuses the adapter me/Large-lora \(LoRA rank 32 is greater than"):
        adapters.publish("me/Large-lora", catalog)
    adapters.reconcile()
    assert len(servers[0].requests) == 1 and adapters.names() == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config_json": config(base_model_name_or_path="someone/else")}, "needs the base someone/else"),
        ({"adapter_config_json": config(use_dora=True)}, "use_dora"),
        ({"adapter_config_json": config(r=8)}, "does not describe"),
        ({"adapter_model_safetensors": b"PK\3\4 a pickle"}, "damaged"),
        ({"adapter_model_safetensors": weights(lambda name, tensor: tensor / 0)}, "not finite"),
    ],
)
def test_unchecked_files_never_reach_a_replica(hub, servers, adapters, catalog, files, words):
    put(hub, "bad/Adapter-lora", **files)
    with pytest.raises(LabError, match=words):
        adapters.publish("bad/Adapter-lora", catalog)
    assert not servers[0].requests and not list(Path(os.environ["REMOTE_ADAPTERS"]).glob("*/*/*"))
    check_adapter(EMOJI, "nano-emoji")


def test_refresh_lists_what_was_published_and_is_loaded(hub, servers, adapters, catalog):
    put(hub, "team/Nano-lora")
    lab = Lab(catalog, "remote", authors=["team"])
    lab.models.replicas = adapters
    assert lab.refresh() == ""
    assert [entry.id for entry in lab.catalog.entries] == ["nano", "team/Nano-lora"]
    assert "team/Nano-lora" in servers[1].loaded
    put(hub, "team/Broken-lora", adapter_model_safetensors=b"broken")
    assert "team/Broken-lora is damaged" in lab.refresh()  # and the others still answer
    assert [entry.id for entry in lab.catalog.entries] == ["nano", "team/Nano-lora"]
    lab.engines.close()


def test_publish_to_fleet_names_what_is_missing_before_it_sends_anything(hub, tmp_path):
    arguments = ("training", "publish", "nano-emoji", "--namespace", "me", "--to-fleet")
    assert_refused(command(*arguments, **hub.environment(), REMOTE_REPLICAS=""), "REMOTE_REPLICAS is not set")
    one = {"REMOTE_REPLICAS": "http://127.0.0.1:1", "REMOTE_ADAPTERS": ""}
    assert_refused(command(*arguments, **hub.environment(), **one), "REMOTE_ADAPTERS is not set")
