"""The ports' real implementations, one technology each."""
