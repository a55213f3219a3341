"""Metrics, all of them declared in one file (`metric_definitions.py`), logs (`log.py`) and traces (`traces.py`)."""
