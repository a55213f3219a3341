"""Single sign-on: tokens of OpenID Connect issuers, the callers they stand for, and the console's sign-in."""
