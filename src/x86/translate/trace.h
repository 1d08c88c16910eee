/* Listings of translations: guest code on the left, what was made of it on the right. */
#ifndef X86_TRANSLATE_TRACE_H
#define X86_TRANSLATE_TRACE_H

#include "base/types.h"

struct x86_code;

/* Appends a listing to the file ("-": standard error).  name, lin: of the block in the guest; number: of the translation. */
void x86_trace_code(const char *path, const char *name, const struct x86_code *code, u64 lin, u64 number);

#endif
