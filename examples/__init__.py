"""Applications of their own that listen to the shop."""
