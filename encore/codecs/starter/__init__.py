"""The starter codec: its file format, initialisation and training."""
