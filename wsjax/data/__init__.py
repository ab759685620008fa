"""Image data sets in memory, and pools that grow."""
