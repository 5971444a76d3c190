"""Several vLLM servers, a router and the page, started and ended together.

`cpu.env` is the one file with models, ports, memory and threads; `compose.yaml` starts the same commands on GPUs with
`gpu.env`. The servers are vLLM, the router is vLLM's, and supervisord restarts what ends; `supervisord.conf` is its
configuration. This room only starts them. It may import `inference.errors` and `inference.settings`, and runs in an
environment of its own (`requirements-fleet.txt`).
"""
