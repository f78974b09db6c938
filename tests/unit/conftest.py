"""What all tests without a guest share."""

from hypothesis import settings

# By default an example may take 0.2 s, and a busy host holds any of them up for longer: what it answers is tested here, not how fast.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
