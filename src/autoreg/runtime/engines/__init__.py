"""One adapter per inference library, named after it. They do not know each other."""
