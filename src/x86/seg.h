/* A segment register with its hidden part. */
#ifndef X86_SEG_H
#define X86_SEG_H

#include "base/types.h"

/* Writable data of 4 GiB needs no check outside 64-bit mode. */
enum x86_seg_flat { X86_SEG_OTHER, X86_SEG_FLAT, X86_SEG_BASED /* its base is not 0 */ };

struct x86_seg {
  u64 base;
  u32 limit; /* in bytes, granularity applied */
  u16 sel;
  u8 type;   /* descriptor type field, 4 bits */
  u8 s, dpl, present, avl, l, db, g;
  u8 unusable;
  u8 flat;   /* enum x86_seg_flat (cpu/seg.c keeps it) */
};

#endif
