"""What all tests share."""

from hypothesis import settings

# A busy machine is no fault of the code: laws are held by examples, not by a stopwatch.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
