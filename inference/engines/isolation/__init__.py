"""An engine in a process of its own, so that a hostile model file cannot crash or read the page.

llama.cpp aborts its process if an assertion fails, and an untrusted file can make one fail, or worse. `engine` has the
engine protocol and forwards each call to the child process. `child_process` is the parent's handle on the child, which
is confined (`inference.processes`) and killed if it hangs; `engine_process` is the program that it runs. `crashes`
remembers the files that crashed it. Many calls at once share one channel. Messages are JSON, see `messages`.
From the parent:

    [number, "call", method, arguments]    start a call
    [number, "next"]                       send the next chunk of an answer
    [number, "cancel"]                     the visitor pressed stop
    [number, "close"]                      nobody reads the rest of the answer

and from the child:

    [number, "chunk", chunk]               a part of an answer; the child then waits for "next" or "close"
    [number, "end" | "value", result]      the call returned
    [number, "error", message]             the call failed
    [null, "loading" | "loaded", files]    files are being opened; they were opened
    [null, "alive", seconds]               the heartbeat, and how long the engine has been computing one step
"""
