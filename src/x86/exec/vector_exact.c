#include "x86/exec/vector.h"
bool x86_vector_overflow_exact(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, const void *rm) { return false; }
