"""From a catalog entry to a streamed answer. Knows nothing of the page; loads no model until one is asked."""
