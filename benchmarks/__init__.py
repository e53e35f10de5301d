"""Measurements of speed and reliability. They are no tests."""
