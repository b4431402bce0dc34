"""The packed data set, its batches, and how single files are read and written."""
