"""How fast engines are on a machine, what they take, and whether they say there what they should."""
