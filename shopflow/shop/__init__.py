"""Handles events: decodes, prices, stores and counts them."""
