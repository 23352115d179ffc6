"""Lowering: from a bound pattern and a layout to what one backend takes."""
