"""Pixels and georeferencing: windows, tiles, reading and writing rasters."""
