"""What the command line does outside a run: a user's pipeline, folders of pictures, one model."""
