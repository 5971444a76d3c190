"""Speech recognition: from a recording in any format to a transcript."""
