"""serve: one inference request → the right adapter version → its answer, relayed token by token."""
