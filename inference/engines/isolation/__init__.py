"""An engine in a process of its own, so that a broken model file cannot crash the page.

llama.cpp aborts its process if an assertion fails, and an untrusted file can make one fail. `engine` has the engine
protocol and forwards each call to the child process. `child_process` is the parent's handle on the child, and `child`
is the program that the child runs. Many calls at once share one socket. Messages from the parent:

    (number, "call", method, arguments)    start a call
    (number, "next")                       send the next chunk of an answer
    (number, "cancel")                     the visitor pressed stop
    (number, "close")                      nobody reads the rest of the answer

and from the child:

    (number, "chunk", chunk)               a part of an answer; the child then waits for "next" or "close"
    (number, "end" | "value", result)      the call returned
    (number, "error", message)             the call failed
    (None, files)                          these files are loaded now; None: loading ended
"""
