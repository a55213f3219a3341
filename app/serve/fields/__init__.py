"""Request fields: OpenAI parameters, checked and written anew."""
