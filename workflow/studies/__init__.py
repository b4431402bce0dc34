"""Many runs together: a folder each study, with its tables, figures and summary."""
