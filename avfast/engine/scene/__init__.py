"""Sound2Scene from end to end: its stages in order, what one hands to the next, and what comes out."""
