"""Firecracker: typed API client, pure configuration, process."""
