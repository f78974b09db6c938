"""Routed uplinks on the host: what a network in bridge mode needs root for, and how it is asked for."""
