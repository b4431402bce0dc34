"""Write tables and numbers anew, and say which verdicts are wrong."""

import sys

from workflow.docs import PAGES, up_to_date, wrong_marks

for page in PAGES:
    page.write_text(up_to_date(page), encoding="utf-8")
sys.exit("\n".join(problem for page in PAGES for problem in wrong_marks(page)) or 0)
