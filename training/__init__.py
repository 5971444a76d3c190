"""From a recipe to a published model. May import `inference`, never `ui`."""
