"""A network's answers, class by class. measures (numbers alone), tables (CSV), pictures (PNG), result (JSON, for the
report's page)."""
