"""The ``.beton`` files that FFCV reads: settings, format, build and verify; source reads images back from one.

files: their paths, whether they are up to date, and the manifest beside each.
"""
