"""A run's folder: its rows and its checkpoints."""
