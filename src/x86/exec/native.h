/* Instructions that run on the host CPU: the door for all of them, and the stubs of x87 and MMX. */
#ifndef X86_EXEC_NATIVE_H
#define X86_EXEC_NATIVE_H

#include "x86/exec/exec.h"

/* Everything a handler knows of an x87 or MMX instruction; cached by its bytes, never freed. */
struct x86_native {
  struct x86_native *next;
  void (*stub)(struct x86_vcpu *c, void *mem, u64 *flags); /* mem: host address of the memory operand; flags: out */
  u16 mem_size;   /* bytes, 0: none */
  bool mem_read, mem_write;
  bool mmx, x87;
  bool flags;     /* writes arithmetic flags */
  bool waits;     /* x87 instruction that checks for pending exceptions */
  u8 key_len;
  u8 key[20];
};

/* Finds or makes the stub for a decoded instruction; NULL: cannot be run so. */
struct x86_native *x86_native_get(const struct x86_decoded *d);
/* Instructions with semantics of their own (x87 environment, EMMS): x87.c. */
x86_exec_fn *x86_x87_select(const struct x86_decoded *d, struct x86_insn *i);

/* Where MMX register n lies; what an MMX instruction does to TOP and the tags (vector.c). */
void *x86_mmx_register(struct x86_vcpu *c, unsigned n);
void x86_mmx_state(struct x86_vcpu *c);
void x86_mmx_top(struct x86_vcpu *c); /* TOP alone */
void x86_x87_set_top(struct x86_vcpu *c, unsigned top);
/* After a store: an unmasked exception has kept it from happening (SDM Vol. 1, 8.5). */
bool x86_x87_not_stored(struct x86_vcpu *c);

/* #UD and #NM of x87 and MMX (SDM Vol. 3A tables 14-1, 14-2), and a pending #MF for instructions that wait. */
int x86_x87_check(struct x86_vcpu *c, bool mmx, bool waits);
/* An x87 instruction whose stub is all there is to it. */
bool x86_x87_is_plain(const struct x86_insn *i);
/* Runs an x87 or MMX stub; mem: host address of the memory operand or NULL.  i->imm: the opcode as FOP has it. */
int x86_x87_run(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_native *n, void *mem);

#endif
