"""``python -m pelap`` is the same command as ``pelap``."""

from pelap.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
