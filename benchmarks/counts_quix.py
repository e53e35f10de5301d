"""Counts alone: Quix Streams' stateful count, with its changelog."""

from benchmarks.quix import main

main(stored=False)
