"""Block devices for root disks that are snapshots: one port, two ways to them."""
