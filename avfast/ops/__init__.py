"""One file per op: public function, validation, autograd, schema, fake. The names are re-exported at ``avfast``."""
