"""The character-count service: clients send messages, the server answers each with its number of characters."""
