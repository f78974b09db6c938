"""The runtime bundle: firecracker and jailer, verified before they are placed and before they are used."""
