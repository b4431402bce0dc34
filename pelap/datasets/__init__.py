"""Where data sets come from: a file each, and their names in `sources`."""
