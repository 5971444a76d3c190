// No answer is lost between two streams. Gradio's server ends a page's stream of results when no event of the page is
// left, and the page opens another stream for its next event. An event that is sent before the end has arrived gets
// none (Gradio 6.31): its results wait on the server until the event after it. So here another stream follows a stream
// that the server ends while results are due, and the page sees both as one.
{
  const due = new Set();  // ids of events that the server has taken and not completed
  const early = new Set();  // those that were completed before the server's answer to the request arrived
  const send = window.fetch.bind(window);

  async function* messages(response) {
    if (!response.ok) throw response;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const {value, done} = await reader.read();
      if (done) return;
      const texts = (rest + value).split("\n\n");
      rest = texts.pop();
      yield* texts;
    }
  }

  async function* continued(response, reopen) {
    for (let before = []; response;) {
      let ended = false;
      for await (const text of messages(response)) {
        const {msg, event_id} = text.startsWith("data:") ? JSON.parse(text.slice("data:".length)) : {};
        if (msg === "process_completed") due.delete(event_id) || early.add(event_id);
        // What was due before this stream is not any more: the server says that nothing is left.
        if (msg === "close_stream") before.forEach((id) => due.delete(id));
        ended = msg === "close_stream" && due.size > 0;
        if (ended) break;
        yield text + "\n\n";
      }
      before = [...due];
      response = ended ? await reopen() : null;
    }
  }

  const asBody = (texts) => new ReadableStream({
    async pull(controller) {
      const {value, done} = await texts.next();
      done ? controller.close() : controller.enqueue(new TextEncoder().encode(value));
    },
  });

  window.fetch = async (resource, options) => {
    const response = await send(resource, options);
    const address = String(resource.url ?? resource);
    if (!response.ok) return response;
    if (address.includes("/queue/join")) {
      const {event_id} = await response.clone().json();
      early.delete(event_id) || due.add(event_id);
    }
    if (!address.includes("/queue/data?")) return response;
    return new Response(asBody(continued(response, () => send(resource, options))), response);
  };
}
