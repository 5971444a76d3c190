"""From a catalog entry to a streamed answer. Knows nothing of the page; loads no model until one is asked."""

import logging

# While it is imported, bitsandbytes warns that it did not download a kernel for 4 bits on a CPU. It works without it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
