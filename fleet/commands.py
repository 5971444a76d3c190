"""The commands of the fleet's processes and their environments: a replica, the router, the page.

`compose.yaml` has the same commands for GPUs; a test compares them.
"""

from __future__ import annotations

from fleet.settings import FleetSettings, port
from inference.settings import PROJECT

METRICS = 10  # the router's figures for Prometheus are at its port plus this


def replica_command(settings: FleetSettings, number: int) -> list[str]:
    """vLLM's server for the replica `number`, counted from 1."""
    return [
        "python3", "-m", "vllm.entrypoints.openai.api_server",  # `vllm serve` wants the package to be named vllm
        "--model", settings.model,
        "--served-model-name", settings.name,
        "--host", settings.listen,
        "--port", str(port(settings.replica_urls[number - 1])),
        "--dtype", settings.dtype,
        "--max-model-len", str(settings.context),
        "--gpu-memory-utilization", f"{settings.gpu_memory:g}",
        "--enable-lora",
        "--max-loras", str(settings.max_loras),
        "--max-lora-rank", str(settings.max_lora_rank),
        "--enable-prompt-tokens-details",  # cached tokens, for the figures below an answer
        "--shutdown-timeout", "10",  # seconds for running answers; supervisord.conf kills it after 12
        "--lora-modules", *settings.lora_modules,
    ]  # fmt: skip


def replica_environment(settings: FleetSettings) -> dict[str, str]:
    """What vLLM reads from the environment."""
    return {
        "OMP_NUM_THREADS": str(settings.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else each replica takes the same cores
        "VLLM_CPU_KVCACHE_SPACE": f"{settings.kv_cache_gb:g}",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        **({"VLLM_API_KEY": settings.api_key} if settings.api_key else {}),
    }


def router_command(settings: FleetSettings) -> list[str]:
    """vLLM's router in front of the replicas. Equal beginnings go to the replica that has them in its prefix cache.

    A replica that refuses two requests gets none for 5 s: until the checks notice that it has ended, each attempt would
    go to it again, because it has the question's beginning. A replica that answers neither of two checks within 5 s
    gets no more questions until it answers one. A shorter time takes replicas out that are only busy.
    """
    return [
        "vllm-router",
        "--host", settings.listen,
        "--port", str(port(settings.router_url)),
        "--prometheus-port", str(port(settings.router_url) + METRICS),
        "--worker-urls", *settings.replica_urls,
        "--policy", "cache_aware",
        "--balance-abs-threshold", "4",  # questions by which the load of replicas may differ
        "--health-check-interval-secs", "2",
        "--health-check-timeout-secs", "5",
        "--health-failure-threshold", "2",
        "--health-success-threshold", "1",
        "--worker-startup-check-interval", "1",
        "--cb-failure-threshold", "2",
        "--cb-success-threshold", "1",
        "--cb-timeout-duration-secs", "5",
    ]  # fmt: skip


def page_command() -> list[str]:
    """The page, in the environment that `make` sets up for it."""
    return [str(PROJECT / ".venv" / "bin" / "python"), "app.py"]


def page_environment(settings: FleetSettings) -> dict[str, str]:
    """The page gets its answers from the router, and loads published adapters into each replica."""
    return {
        "PORT": str(settings.page_port),
        "GRADIO_SERVER_NAME": settings.listen,
        "ENGINE": "remote",
        "REMOTE_URL": f"{settings.router_url}/v1",
        "REMOTE_REPLICAS": " ".join(settings.replica_urls),
        "REMOTE_ADAPTERS": str(settings.state / "adapters"),
        "REMOTE_MAX_ADAPTERS": str(settings.max_loras),
    }
