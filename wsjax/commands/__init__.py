"""What the command `wsjax` runs: a module a command, for those who have the package without its repository."""
