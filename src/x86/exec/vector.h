/* SSE to AVX-512 on the host CPU: what is known of an instruction's form, and the stub that runs it.
 *
 *   vector_form.c     a decoded instruction -> its form: operands by role, bytes with fixed register numbers
 *   vector_stub.c     a form -> generated code, cached by those bytes
 *   vector.c          the handlers: checks, memory operand, stub
 *   vector_masked.c   memory operands of which only selected parts are accessed
 *   vector_gather.c   gathers and scatters
 *   vector_fp.c       MXCSR and floating-point exceptions
 *   vector_exact.c    what only unmasked exceptions show: exact overflowed results, tiny half-precision ones
 *
 * A stub runs one form with any registers: it gets pointers to its operands' storage.  So there are few of them, and none is ever
 * freed.
 */
#ifndef X86_EXEC_VECTOR_H
#define X86_EXEC_VECTOR_H

#include "x86/exec/exec.h"

/* Operands by where the encoding has them: ModRM.reg, ModRM.rm (or memory), VEX.vvvv (or the implied XMM0), and one of: the
 * register in an immediate, the opmask, the general registers of PCMPESTRx. */
enum x86_vector_role { ROLE_REG, ROLE_RM, ROLE_VVVV, ROLE_FOURTH, ROLE_COUNT };

enum x86_vector_class {
  VECTOR_SSE,
  VECTOR_AVX,
  VECTOR_AVX512, /* EVEX encodings and instructions on opmasks */
  VECTOR_MIXED,  /* MMX and XMM registers */
  VECTOR_CLASSES
};

/* Which bytes of a memory operand are accessed. */
enum x86_vector_mask {
  MASK_NONE,     /* all */
  MASK_ELEMENTS, /* those whose opmask bit is 1 */
  MASK_PACKED,   /* as many elements as the opmask has ones, from the first on (expand, compress) */
  MASK_SIGNS,    /* those whose element in the mask register is negative (VMASKMOV) */
};

/* register operands: host addresses; rm: of the register or of the memory operand; flags: out, RFLAGS after the instruction */
typedef void x86_vector_stub(void *reg, void *rm, void *vvvv, void *fourth, u64 *flags);

struct x86_vector {
  x86_vector_stub *stub;
  u8 mem_size;              /* bytes, 0: none */
  u8 align;                 /* address bits that must be 0 */
  bool unchecked;           /* no alignment checks */
  u8 class;                 /* enum x86_vector_class */
  u8 mask;                  /* enum x86_vector_mask */
  u8 mask_bits, mask_bytes; /* elements under the mask; bytes of memory for each */
  bool whole;               /* what is masked off must be accessible nevertheless */
  bool store;               /* the memory operand is written (else read) */
  bool fp;                  /* depends on MXCSR */
  bool quiet;               /* raises no exception, whatever MXCSR says */
  bool flags;               /* writes arithmetic flags */
  bool opmask;              /* writes under an opmask */
  bool broadcast;           /* the memory operand is one element */
  u8 elements;              /* of the destination */
  u8 dest;                  /* enum x86_vector_role of what is written; ROLE_COUNT: flags only */
  u8 dest_size;             /* bytes of its storage */
  u16 mnemonic;
  u8 key[16];
  struct x86_vector *next;
};

/* Offsets of the operands' storage in struct x86_vcpu, 16 bits for each role, are in x86_insn.imm. */
static inline void *x86_vector_operand(struct x86_vcpu *c, const struct x86_insn *i, enum x86_vector_role role) {
  return (u8 *)c + (u16)(i->imm >> (16 * role));
}

/* ---- vector_form.c ---- */
struct x86_vector_operand {
  bool used, read, write;
  u8 kind; /* ZydisRegisterClass */
  u8 id;   /* the guest's register */
  u8 host; /* the stub's */
  u8 size; /* bytes */
};
struct x86_vector_form {
  struct x86_vector_operand op[ROLE_COUNT];
  const ZydisDecodedOperand *mem;
  bool implied, implied_rcx; /* PCMPxSTRx: RAX and RDX in, RCX out; the fourth address is that of the general registers */
  u8 class;
  u8 bytes[16], len;
};
/* false: not an instruction that a stub can run. */
bool x86_vector_form(const struct x86_decoded *d, struct x86_vector_form *f);

/* ---- vector_stub.c ---- */
struct x86_vector *x86_vector_get(const struct x86_decoded *d, const struct x86_vector_form *f);

/* ---- vector.c ---- */
x86_exec_fn *x86_vector_select(const struct x86_decoded *d, struct x86_insn *i);
/* Whether the instruction has a struct x86_vector and its operands are those of its encoding: then it may also run as itself. */
bool x86_vector_is_plain(const struct x86_insn *i);
/* #UD and #NM by CR0, CR4 and XCR0 (SDM Vol. 2A, tables 2-18 to 2-25, 2-41 and on). */
int x86_vector_refuse(struct x86_vcpu *c, enum x86_vector_class class);
/* The components of XCR0 that must be enabled; 0: none, but CR4.OSFXSR. */
static inline u64 x86_vector_xcr0(enum x86_vector_class class) {
  return class == VECTOR_AVX512 ? 0xe6 : class == VECTOR_AVX ? 6 : 0;
}
static inline bool x86_vector_enabled(const struct x86_vcpu *c, enum x86_vector_class class) {
  const u64 need = x86_vector_xcr0(class);
  if (!need) return !((c->cr0 & (CR0_EM | CR0_TS)) | (~c->cr4 & CR4_OSFXSR));
  return !((c->cr0 & CR0_TS) | (~c->cr4 & CR4_OSXSAVE) | (~c->xcr0 & need));
}

/* ---- vector_masked.c ---- */
void x86_vector_describe_mask(const struct x86_decoded *d, const struct x86_vector_form *f, struct x86_vector *v);
x86_exec_fn *x86_vector_masked_select(const struct x86_decoded *d, struct x86_insn *i);
/* The bytes of the memory operand that the instruction accesses, a bit for each. */
u64 x86_vector_needed(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v);
/* Reads, checks for writing, or writes those bytes of a buffer. */
int x86_vector_read(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u64 needed, u8 *buf);
int x86_vector_probe(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u64 needed);
int x86_vector_probe_whole(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, unsigned n);
/* All of the operand is accessed, as by the host's instruction, whatever is written. */
int x86_vector_touch_whole(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, unsigned n);
int x86_vector_write(struct x86_vcpu *c, const struct x86_insn *i, u64 ea, u64 needed, const u8 *buf);

/* ---- vector_gather.c ---- */
x86_exec_fn *x86_vector_gather_select(const struct x86_decoded *d, struct x86_insn *i);

/* ---- vector_fp.c ---- */
/* Runs an instruction with floating-point exceptions while MXCSR is not in the host's register. */
int x86_vector_run_fp(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *rm, u64 *flags);

/* ---- vector_exact.c ---- */
/* All results are exact in the destination's precision, however large, and however small where underflow is unmasked. */
bool x86_vector_exact(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, void *const operand[ROLE_COUNT]);
/* The instruction knows the underflow exception. */
bool x86_vector_underflows(const struct x86_vector *v);
/* One of the half-precision results is a denormal. */
bool x86_vector_tiny_half(struct x86_vcpu *c, const struct x86_insn *i, const struct x86_vector *v, const void *result);

#endif
