"""What a user runs: the command line and its batch work. Nothing below imports this."""
