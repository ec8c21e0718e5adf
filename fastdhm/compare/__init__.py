"""``fastdhm compare``: several runs as one result, with intervals over seeds or beside the paper's numbers.

What is run: arms (a method and its values), paper (the paper's tables as data), plan (the runs of a comparison).
How: runner (from settings to results; runs one by one), side_by_side (in processes), slurm (as jobs of a cluster),
slurm_job (what is inside one), watch (what is shown of both).
Where it stands: directory (the comparison's folder), runs (how far each run is), jobs (what is left and how long).
What came out: results (values by arm, branch and seed), statistics (intervals), words (remarks on the numbers).
What is written: report (all of it), record (JSON and CSV), plots.
"""
