"""The parts of report.py: what runs say, where each stands in the tables, and the tables and pictures themselves."""
