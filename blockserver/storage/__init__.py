"""Where objects lie. An object is a block's bytes under its hash and a generation; it is written once."""
