"""Metrics (all declared in `metric_definitions.py`), logs (`log.py`) and traces (`traces.py`)."""
