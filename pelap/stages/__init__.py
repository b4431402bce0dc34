"""One thin file per stage: load, call, save. Each has ``run(context)``; nothing is computed here."""
