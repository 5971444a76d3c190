"""llama-server for `benchmarks.llama_server`: how it is built and how it is asked."""
