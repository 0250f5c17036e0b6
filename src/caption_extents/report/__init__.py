"""The page to look at a version with, and the corrections that come out of it."""
