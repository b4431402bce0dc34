"""What every stage stands on: errors, paths, files, named randomness, devices, keys of what is kept."""
