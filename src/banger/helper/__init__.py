"""banger-helper, the privileged helper."""
