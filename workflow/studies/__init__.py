"""The studies: a folder each. Its `__init__` says what is made of which cells, `summarise` makes it."""
