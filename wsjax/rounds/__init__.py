"""The loop of rounds."""
