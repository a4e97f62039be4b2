"""Model <-> file; every format is one file here."""
