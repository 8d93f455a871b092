from .naming import NamedData as NamedData, data_file as data_file, sources_of as sources_of
from .rows import Rows as Rows
