"""When words and sentences were said."""
