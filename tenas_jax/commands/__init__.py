"""The commands of `tenas`, one module each: what it does in a line, and `run(words)`."""
