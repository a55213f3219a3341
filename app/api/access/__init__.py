"""Access control of the API: keys, roles, rate limits, and checks made before routing."""
