"""Cutting operators out of a network: which there are, what replaces them, plans, and their application."""
