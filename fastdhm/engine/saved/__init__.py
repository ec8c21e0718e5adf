"""What a run's folder holds: names (of its files), checkpoint, record (the log), judged (the errors in the log), owed
(what a run still owes)."""
