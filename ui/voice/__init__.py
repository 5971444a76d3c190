"""Voice on the page: recordings become questions, and answers are read aloud."""
