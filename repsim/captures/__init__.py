"""Hidden states under layer plans: make, resume, read."""
