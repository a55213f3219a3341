"""Access control of the API: keys, roles, rates, and checks that come before any route."""
