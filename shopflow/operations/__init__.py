"""What an operator asks for: verify, replay, dead letters, export."""
