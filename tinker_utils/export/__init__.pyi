from .adapter import export_adapter as export_adapter
