"""``python -m autoreg``, which is how torchrun starts it."""

from autoreg.cli import main

main()
