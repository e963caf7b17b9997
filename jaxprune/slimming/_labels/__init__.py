"""How groups are found."""
