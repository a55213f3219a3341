"""Every metric declared on one page (`metrics.py`), and logging (`log.py`)."""
