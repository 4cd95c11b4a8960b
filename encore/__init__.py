"""The engine of Encore: one flat room per concern (see the file map in README.md)."""
