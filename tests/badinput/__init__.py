"""Bad input of every kind, against real processes: each has its error and changes nothing."""
