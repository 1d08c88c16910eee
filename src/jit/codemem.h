/* Memory for generated code: written at one address, executed at another, never both at one. */
#ifndef JIT_CODEMEM_H
#define JIT_CODEMEM_H

#include "base/types.h"

/* Copies code into executable memory; it stays for the life of the process.  Any thread.  NULL when the arena (64 MiB) is full or cannot be made. */
void *codemem_add(const u8 *code, size_t len);

#endif
