from .adapter import export_adapter as export_adapter, loading_lines as loading_lines
from .served import ServedCheck as ServedCheck, check_served as check_served
