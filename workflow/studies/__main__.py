"""``python -m workflow.studies NAME --root DIR --cells ...``: summarise a study."""

import argparse
from pathlib import Path

from pelap.commands.studies import study_module
from pelap.core.errors import PelapError

parser = argparse.ArgumentParser(prog="python -m workflow.studies", description="Summarise a study.")
parser.add_argument("name", metavar="NAME", help="a folder of workflow/studies")
parser.add_argument("--root", type=Path, metavar="DIR", help="of its cells [those of its grid]")
parser.add_argument("--cells", nargs="+", metavar="CELL", help="these alone [all finished ones]")
args = parser.parse_args()
try:
    root = args.root or Path(study_module(args.name).ROOT)
    study_module(f"{args.name}.summarise").summarise(root, args.cells)
except PelapError as error:
    parser.exit(2, f"error: {error}\n")
