/* Names of guest addresses, from a file that the user gave. */
#ifndef X86_TRANSLATE_SYMBOLS_H
#define X86_TRANSLATE_SYMBOLS_H

#include "base/types.h"

struct symbols;

/* A System.map (or the guest's /proc/kallsyms), or a 64-bit ELF file with a symbol table.  NULL: nothing of that kind, which has
 * been said. */
struct symbols *symbols_load(const char *path);
void symbols_free(struct symbols *s);

/* How an address is called everywhere: "guest:memcpy+1c", or "guest:ffffffff81234567" where no name is known.  s may be NULL. */
#define GUEST_NAME_MAX 128
void symbols_name(const struct symbols *s, u64 address, char name[GUEST_NAME_MAX]);

#endif
