"""Where images come from: a source gives the images of one split of one data set, one by one.

source: the protocol, and the names of the data sets. load: opens a source by the name of its data set. folder, arrays,
synthetic, and people, drawn_people for re-identification: the sources. subset, corrupt, readable: a part of the
samples, wrong labels on purpose, only readable images. walk: searches folders. identity: which images a source has.
"""
