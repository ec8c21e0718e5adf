"""One image file to 8-bit RGB: read does it for any format and mode, with grey (deep greyscale), tiff and signatures.

pool: worker processes that read many images.
"""
