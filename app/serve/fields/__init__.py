"""Request fields: OpenAI's parameters, checked and built anew for the engine."""
