"""What a command does once its flags are parsed: one file a command."""
