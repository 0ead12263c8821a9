"""Plan the counterpart of upstream's ``initialize_vision_modules``."""
