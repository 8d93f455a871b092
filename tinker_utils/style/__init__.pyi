from .curves import describe as describe, figure as figure, png as png, save_png as save_png, svg as svg
from .overlays import describe_overlay as describe_overlay, overlay as overlay
