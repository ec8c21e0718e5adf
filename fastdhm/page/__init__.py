"""One HTML page of a run, or of a comparison: no script and nothing from the network, so that it can be mailed.

html (a page, its style, its tables) and svg (curves and heat maps) know nothing of runs; run and comparison do.
"""
