"""bangerd: composition, server, life cycle."""
