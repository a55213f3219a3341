"""Demo: a made-up domain, the tiny models and adapters trained on it, and the tour through the gateway."""
