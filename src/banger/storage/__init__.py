"""Disks of VMs."""
