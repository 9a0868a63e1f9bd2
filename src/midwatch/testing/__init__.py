"""What Midwatch is tested with, and what you test your own settings, subjects and stores with."""
