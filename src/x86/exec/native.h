/* Instructions that run on the host CPU: what the stub maker and the handlers share. */
#ifndef X86_EXEC_NATIVE_H
#define X86_EXEC_NATIVE_H

#include "x86/exec/exec.h"

/* Everything a handler knows of a native instruction; cached by its bytes, never freed. */
struct x86_native {
  struct x86_native *next;
  void (*stub)(struct x86_vcpu *c, void *mem, u64 *flags); /* mem: host address of the memory operand; flags: out */
  u16 mem_size;   /* bytes, 0: none */
  bool mem_read, mem_write, mem_aligned;
  bool sse, avx, evex, mmx, x87;
  bool fp;        /* reads or writes MXCSR */
  bool flags;     /* writes arithmetic flags */
  bool waits;     /* x87 instruction that checks for pending exceptions */
  u8 key_len;
  u8 key[20];
};

/* Finds or makes the stub for a decoded instruction; NULL: cannot be run so. */
struct x86_native *x86_native_get(const struct x86_decoded *d);
/* Instructions with semantics of their own (x87 environment, EMMS): x87.c. */
x86_exec_fn *x86_x87_select(const struct x86_decoded *d, struct x86_insn *i);

/* VMASKMOV, VPMASKMOV and the AVX2 gathers: element by element, so that masked-off elements cannot fault (masked.c). */
x86_exec_fn *x86_masked_select(const struct x86_decoded *d, struct x86_insn *i);

/* #UD and #NM of SSE, AVX and AVX-512 by CR0, CR4, XCR0. */
int x86_native_enabled(struct x86_vcpu *c, const struct x86_native *n);
/* #UD and #NM of x87 and MMX (SDM Vol. 3A tables 14-1, 14-2), and a pending #MF for instructions that wait. */
int x86_x87_check(struct x86_vcpu *c, bool mmx, bool waits);
/* Runs an x87 or MMX stub with all exceptions masked and recomputes what an unmasked one changes. */
int x86_x87_run(struct x86_vcpu *c, const struct x86_native *n, void *mem);

#endif
