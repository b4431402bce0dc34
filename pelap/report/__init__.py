"""One run as a page, a table and a figure, from its tables alone."""
