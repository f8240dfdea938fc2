"""Parameter-efficient tuning: which methods there are, and what they share."""
