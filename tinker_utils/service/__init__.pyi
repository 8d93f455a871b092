from .client import Service as Service, ask_for_models as ask_for_models, connect as connect
from .model import Model as Model
from .sampling import Sample as Sample, sample_answers as sample_answers
