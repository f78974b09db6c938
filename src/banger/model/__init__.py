"""Pure values: no input or output, standard library only."""
