"""What the daemon does: operations, plans, workers, reconcile."""
