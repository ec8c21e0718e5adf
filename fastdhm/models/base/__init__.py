"""What a network with branches is, in any family: branched (trunk, taps, branches, strip()), alone (one branch).

And how a network is read and changed: trace (what it computes, in order), classifier, copies, recompute, initialise.
"""
