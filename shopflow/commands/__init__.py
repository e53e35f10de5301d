"""The commands of `faust -A shopflow`."""
