"""What crosses the daemon's socket: structs, routes, errors."""
