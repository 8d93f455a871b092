from .messages import chat_messages as chat_messages
from .reader import RowReader as RowReader
