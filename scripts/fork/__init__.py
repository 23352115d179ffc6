"""The fork's tool: keeps upstream's source, the overlay and the patch series in step."""
