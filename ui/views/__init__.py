"""What is shown as HTML: cards, charts and tables."""
