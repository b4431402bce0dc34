"""PeLAP: masked latent diffusion models, explained, scored, pruned and distilled.

The package is a library; `pelap.cli` and the stages are its command line. Nothing heavy is imported
here, so that ``pelap --help`` answers at once.
"""

__version__ = "0.1.0"
