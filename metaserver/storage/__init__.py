"""SQL, and nothing else: functions on an open connection."""
