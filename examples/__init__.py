"""Other applications: one reads the shop's topics, one uses `faust_batches` alone."""
