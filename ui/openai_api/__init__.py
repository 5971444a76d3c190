"""The OpenAI-compatible API under `/v1`, on the page's own port. `routes` has the application; import it from there.

- `routes` joins the endpoints, the key and the limit of a request's size.
- `chat_values` checks the body of a chat completion: what is not supported is refused, not ignored.
- `completions` answers, `answer_stream` reads the chunks of an answer without blocking the event loop.
- `sound` transcribes recordings and reads texts aloud.
- `api_errors` turns every error into OpenAI's form, `request_queue` lets requests wait for each other.
"""
