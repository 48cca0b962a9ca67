"""The parts of report.py and analyse.py."""
