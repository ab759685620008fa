"""What the command `wsjax` runs: a module a command."""
