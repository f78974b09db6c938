"""The guest seen from the host: agent client, identity, readiness."""
