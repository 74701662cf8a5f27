"""What every long run needs, whatever it computes."""
