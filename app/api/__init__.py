"""HTTP API: translates requests and responses, and makes no decisions."""
