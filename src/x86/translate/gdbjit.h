/* Names and unwind rules of translations for gdb, by its interface for JIT compilers. */
#ifndef X86_TRANSLATE_GDBJIT_H
#define X86_TRANSLATE_GDBJIT_H

#include "base/types.h"

struct gdb_names;

/* Of one VM. */
struct gdb_names *gdb_names_create(void);
void gdb_names_destroy(struct gdb_names *g);
/* In the order of addresses. */
void gdb_names_add(struct gdb_names *g, const u8 *start, const u8 *end, const char *name);
void gdb_names_reset(struct gdb_names *g);

#endif
