"""Our engine beside other ways of running the same network: ``fastgen bench --peers``."""
