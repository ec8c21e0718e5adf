"""One image file to 8-bit RGB: read, for any format and mode, with grey (deep greyscale), tiff and signatures.

pool: the worker processes that read many.
"""
