"""Pictures of masks: in the terminal, as SVG, and as PNG. `picture.py` makes them; the others draw."""
