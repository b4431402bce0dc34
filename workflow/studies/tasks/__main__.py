"""Summarise the study."""

from workflow.studies.common import command_line

command_line(__package__)
