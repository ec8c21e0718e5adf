"""What is done to a batch on the device.

transforms: crops, flips, normalising and shrinking, with what follows between them. policy: what is drawn for each
image. operations: what is then done to it. erase: rectangles that are filled. augmentation: all of that as one value.
"""
