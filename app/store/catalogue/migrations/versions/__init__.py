"""Revisions: `vNNNN_*.py` migrates schema version N − 1 to N. A released revision is never changed again."""
