"""Code that suites share. Suite files are the modules directly in ``wrappers/``."""
