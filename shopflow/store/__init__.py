"""MongoDB: the only room that imports pymongo."""
