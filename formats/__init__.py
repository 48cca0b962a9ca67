"""Offline data as people have it: which format a directory holds, and its episodes one at a time."""

from formats.sources import FORMATS, Source, find_sources

__all__ = ["FORMATS", "Source", "find_sources"]
