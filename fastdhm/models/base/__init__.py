"""What a network with branches is, of any family: branched (trunk, taps, branches, strip()), alone (one branch).

And how one is read and handled: trace (what it computes, in order), classifier, copies, recompute, initialise.
"""
