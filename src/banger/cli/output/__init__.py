"""Tables, JSON, progress, errors."""
