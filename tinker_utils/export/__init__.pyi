from .adapter import export_adapter as export_adapter, loading_lines as loading_lines
