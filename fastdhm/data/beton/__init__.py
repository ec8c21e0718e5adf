"""The ``.beton`` files that FFCV reads: settings, format, build and verify; source reads one back.

files: where they lie, when they are stale, and the manifest beside each.
"""
