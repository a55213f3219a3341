"""The doors: HTTP in, HTTP out, no decisions."""
