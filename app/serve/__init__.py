"""serve: one inference request → the right adapter version → its answer back, token by token."""
