/* What the environment says about the translator: docs/translator.md lists the variables. */
#ifndef X86_TRANSLATE_SETTINGS_H
#define X86_TRANSLATE_SETTINGS_H

#include "base/types.h"

struct x86_code_settings {
  bool off;            /* UVIRT_ENGINE=interpreter */
  size_t cache;        /* bytes of code memory of a VM (UVIRT_CODE_CACHE) */
  const char *trace;   /* file for listings, "-": standard error; NULL: none (UVIRT_TRACE_CODE) */
  const char *symbols; /* names for guest addresses, or NULL (UVIRT_SYMBOLS) */
  bool perf, gdb;      /* names of translations for them (UVIRT_PERF_MAP, UVIRT_GDB_JIT) */
};

/* The strings are the environment's.  -EINVAL: a value makes no sense, which has been said. */
int x86_code_settings(struct x86_code_settings *s);

#endif
