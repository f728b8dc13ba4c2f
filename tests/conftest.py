"""Settings of hypothesis: the same few examples every time, or many new ones with --hypothesis-profile=thorough."""

from hypothesis import settings

settings.register_profile("quick", max_examples=20, derandomize=True, deadline=None, database=None)
settings.register_profile("thorough", max_examples=100, deadline=None, database=None, print_blob=True)
settings.load_profile("quick")
