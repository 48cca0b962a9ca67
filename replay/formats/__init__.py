"""Offline data as people have it: which format a directory holds, and its episodes one at a time."""

from replay.data_files import FORMATS, Source, find_sources

__all__ = ["FORMATS", "Source", "find_sources"]
