from .form import ConfigForm as ConfigForm, config_form as config_form
from .html import show_picture as show_picture
from .live import Dashboard as Dashboard, dashboard as dashboard
from .tokens import MaskView as MaskView, alignment_table as alignment_table
