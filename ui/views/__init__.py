"""Functions that render data as HTML: cards, charts and tables. Everything that comes from a file is escaped here."""
