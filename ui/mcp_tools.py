"""The page as an MCP server: which of its endpoints are tools for language models.

Gradio offers every endpoint of the API as a tool, under its function's name and docstring.
"""

from __future__ import annotations

import gradio as gr

TOOLS = ("/models", "/ask", "/compare", "/transcribe")


def limit_tools(page: gr.Blocks) -> None:
    """Offer `TOOLS` alone. Votes are for people, and a tool's answer in two parts (`/ask_voice`) is of no use. Call it
    when the page has been launched with `mcp_server=True`."""
    server = page.mcp_server_obj
    assert server is not None
    server.tool_to_endpoint = {tool: path for tool, path in server.tool_to_endpoint.items() if path in TOOLS}
