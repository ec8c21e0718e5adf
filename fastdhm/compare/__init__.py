"""``fastdhm compare``: several runs as one result, with intervals over seeds or beside the paper's numbers.

What is run: arms (a method and its values), paper (the paper's tables as data), plan (the runs of a comparison).
How: runner (trains them one by one), directory (the comparison's folder), runs (how far each run is).
What came out: results (values by arm, branch and seed), statistics (intervals), words (remarks on the numbers).
What is written: report (all of it), record (JSON and CSV), plots.
"""
