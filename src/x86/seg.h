/* A segment register with its hidden part. */
#ifndef X86_SEG_H
#define X86_SEG_H

#include "base/types.h"

struct x86_seg {
  u64 base;
  u32 limit; /* in bytes, granularity applied */
  u16 sel;
  u8 type;   /* descriptor type field, 4 bits */
  u8 s, dpl, present, avl, l, db, g;
  u8 unusable;
  u8 flat;   /* base 0, limit 4 GiB, readable and writable data or code: no check needed outside 64-bit mode (cpu/seg.c keeps it) */
};

#endif
