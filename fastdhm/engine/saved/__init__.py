"""What a run's folder holds: checkpoint, record (the log), judged (the errors in it), owed (what a run still owes)."""
