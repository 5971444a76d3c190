"""How the embedded models were made: the only part of the project that knows they are small."""
