"""The guest agent: stdlib only, imports nothing of banger, runs inside the guest."""

VERSION = "1"
