"""What this host can do for banger, asked without the daemon."""
