"""The HTTP interface: events sent, collections, counts and sales read."""
