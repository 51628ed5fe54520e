"""What holds for all tests."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)  # how long an example takes depends on what runs beside it
settings.load_profile("patient")
