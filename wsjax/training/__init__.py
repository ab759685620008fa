"""Training as pure functions, and when it stops."""
