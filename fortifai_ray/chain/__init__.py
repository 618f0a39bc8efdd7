"""One chain of generations: the recursion, when it stops, and what is reported of each generation. It knows no Ray."""
