"""What the files in a run's folder are called."""

CONFIG = "config.yaml"  # every value resolved
LOG = "log.jsonl"
LAST, BEST = "last.pt", "best.pt"  # all that resuming needs
NETWORK = "network.safetensors"  # the plain network
CURVES = "curves.png"
FAILURE = "failed.json"  # why a run of a comparison cannot go on
EARLY_EXIT = "early-exit.json"  # what eval has found, for the page
REPORT = "report.html"
TRACE = "trace.json"  # of torch's profiler
