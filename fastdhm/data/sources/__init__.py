"""Where images come from: a source answers for one split of one data set, image by image.

source: the protocol, and which data sets there are. load: a source by the name of its data set.
folder, arrays, synthetic; people, drawn_people (re-identification): the sources. subset, corrupt, readable: some of the
samples, wrong labels on purpose, only what can be read. walk: the one walk over folders. identity: which images it has.
"""
