/* Inside the translator: the state of one translation, and what its files offer one another. */
#ifndef X86_TRANSLATE_PRIVATE_H
#define X86_TRANSLATE_PRIVATE_H

#include <Zydis/Zydis.h>
#include "base/region.h"
#include "jit/arena.h"
#include "x86/translate/code.h"
#include "x86/translate/emit.h"
#include "x86/translate/flags.h"
#include "x86/translate/plan.h"

#define X86_CODE_SALT 0x9e3779b1u

#define GS_OF(field) ((s32)offsetof(struct x86_vcpu, field))

/* Guest registers in host registers.  RAX and RCX are scratch: LAHF and SAHF, JRCXZ, shift counts and the fixed operands of
 * others need them. Where no host register is left the guest's stays in the vCPU. */
#define T_HOME(guest) (x86_translate_home[guest])
extern const u8 x86_translate_home[16];

enum { MAX_SLOW = PLAN_INSNS + X86_BLOCK_MAX + 2, MAX_EXITS = X86_BLOCK_MAX * 6 + 8 };

/* Out of line: the interpreter runs the instruction whose fast way failed. */
struct t_slow {
  u8 *from[16]; /* jumps that lead here */
  unsigned n_from;
  unsigned insn;
  u8 *back;                  /* NULL: does not come back */
  bool host_flags;           /* expected in the host's register there */
  struct t_producer again;   /* what makes the flags again when it is taken; none: memory has them */
  u8 rcx, rax;               /* as struct translation has them, there */
  u8 vectors;                /* vector level expected there */
  u8 *scattered[16];          /* jumps of checks for several accesses that failed: to this instruction in the scattered copy */
  unsigned n_scattered;
  u8 *load_from, *load_back; /* vector registers have to be loaded: from where, and back when they are */
  u8 load_level;
  bool load_x87; /* the x87 registers instead */
  bool x87;      /* expected to be loaded there */
};

/* A way out of the block. */
struct t_exit {
  u8 *from;   /* the displacement of its jump */
  s32 target; /* offset from the start of the page */
  bool saved; /* flags are in memory */
  bool smap;  /* SMAP comes into force, or ceases to be */
  bool apart; /* the jump that will be patched is not that one, which goes there */
};

struct translation {
  struct emitter e;
  struct x86_vcpu *c;
  const struct x86_block *b;
  struct x86_code *code;
  unsigned right; /* enum x86_tlb_index */
  bool m32;       /* not 64-bit code: addresses have 32 bits */
  bool m16;       /* 16-bit code */
  bool segmented; /* segments are looked at: 16-bit code, and 32-bit code whose segments are not flat */
  u32 page, limit; /* of such code: the instruction pointer where the page starts; that of the last byte it may have */
  unsigned word;  /* bytes of an address, and of what the stack holds */
  s32 start;      /* the block's offset in its page */

  struct x86_decoded_insn decoded[X86_BLOCK_MAX];
  struct plan plan;
  u64 interpreted; /* instructions left to the interpreter */
  unsigned align;  /* bits of the address of the access at hand that must be 0 and have not been looked at */
  u8 aligned[PLAN_GROUPS]; /* the same of ready groups' lowest byte: known to be 0 */
  u32 ready;       /* groups whose page has been checked */
  bool lost_plan;  /* the plan did not know of one */
  u8 rcx, rax;     /* the groups whose deltas these hold, or PLAN_ALONE */
  bool keeps_rcx, keeps_rax; /* the instruction at hand leaves them as t_access() did, or as they were */
  bool rax_free;             /* it has no need of RAX: its operand may be part of the address */

  /* The instruction at hand. */
  unsigned k;
  u8 moved; /* MOVED_* */
  struct plan_insn *p;
  const struct x86_insn *i;
  const ZydisDecodedInstruction *z;
  const ZydisDecodedOperand *ops;

  struct t_flags f;

  /* A block that jumps to itself is there several times: the gate is at the end of the last one, which goes on at the second. */
  unsigned copies, copy;
  struct { /* the second starts with ... */
    u8 *start;
    struct t_flags f;
    u8 vectors;
    bool x87;
    u32 ready;
  } loop;
  /* Behind it all: the block once more, each access checked by itself, for rounds in which a check for several fails. */
  bool scattered;
  struct plan alone;
  struct {
    u8 *start;
    bool host;
  } at_insn[X86_BLOCK_MAX];

  bool no_loop; /* what the second starts with is not what the last one ends with */

  u8 vectors; /* level known to be loaded (enum x86_vector_level) */
  bool x87;   /* known to be loaded */
  bool x87_page;                        /* has been noted in the vCPU */
  bool x87_pointer_waits;               /* to be noted there: */
  s32 x87_pointer;                      /* offset from the start of the page */
  s32 rsp;    /* pushes and pops in a row: how far RSP is behind */
  bool ended; /* by a branch */
  struct t_slow slow[MAX_SLOW];
  unsigned n_slow;
  struct t_slow *at; /* that of the instruction at hand, or NULL */
  struct t_exit exits[MAX_EXITS];
  unsigned n_exits;
  struct { /* calls, here and in the scattered copy: to drop frames, when there are too many */
    u8 *from, *back;
  } deep[2];
  u8 *entry_host, *entry_saved; /* entries by where the flags are */
  u8 *behind_gate;              /* of the second */
};

/* ---- slow paths (block.c) ---- */
struct t_slow *t_slow(struct translation *t); /* that of this instruction */
void t_need_vectors(struct translation *t, unsigned level);
void t_slow_if(struct translation *t, unsigned cc); /* jump to the slow path of this instruction */
void t_interpret(struct translation *t);            /* the interpreter runs this instruction */
void t_interpret_by(struct translation *t, s32 routine); /* as it does: a routine that may leave it to the interpreter */
void t_exit_to(struct translation *t, u8 *rel32, s32 target);
void t_loop(struct translation *t); /* the end of the last copy: to the second */
void t_load_gate(struct translation *t); /* E: open.  RAX changes */

/* ---- memory.c ---- */
/* The instruction's n-th memory access as an operand of the host's, checked.  RCX, or RAX where it is free, may be part of it; both change (t->rcx, rax);
 * flags are lost unless the page was checked before.  false: not an address the translator can compute. */
bool t_access(struct translation *t, unsigned n, struct em_mem *m);
/* The same of the word that a bit string's instruction works on, the guest register `bit` holding the bit's number.  Flags are lost. */
bool t_access_bit(struct translation *t, unsigned bit, struct em_mem *m);
/* RCX: what to add to the linear address in the host register `at`, when `bytes` from there on lie in a page that may be accessed; RAX: its offset in that page. Returns
 * the displacement of the jump where not.  Flags are lost. */
u8 *t_look_up(struct translation *t, unsigned at, s32 bytes, bool write);
/* Memory operand as an address in mapped registers, for LEA.  false: too many scratch registers. */
bool t_address(struct translation *t, struct em_mem *m);

/* What is added to linear addresses of a group whose page was checked. */
static inline struct em_mem t_delta(unsigned group) {
  return EM_GS(offsetof(struct x86_vcpu, code.delta) + 8 * group);
}

/* ---- instructions: true when translated ---- */
bool t_rewrite(struct translation *t);
bool t_special(struct translation *t);
bool t_special_delays_rsp(const struct translation *t); /* a push or pop that needs RSP as it is no more than in its address */
bool t_branch(struct translation *t);
bool t_is_counting(unsigned mnemonic); /* LOOP and its kin */
bool t_x87(struct translation *t);
bool t_system(struct translation *t);
bool t_high_byte(struct translation *t);
bool t_string(struct translation *t);
/* In real and virtual-8086 mode: the segment register gets the selector in EAX, RAX its base.  Flags stay. */
void t_load_segment(struct translation *t, unsigned seg);

/* ---- x87.c ---- */
/* Notes where the last x87 instruction was, if that waits.  RAX changes. */
void t_flush_x87_pointer(struct translation *t);
/* It neither stops nor shows the pointer. */
bool t_x87_keeps_pointer(const struct translation *t);
/* Whether they are loaded: NE. */
void t_compare_x87(struct emitter *e);

/* Jump to the linear address in RAX; commit: emitted when it is known to succeed.  Flags are saved. */
void t_indirect(struct translation *t, s32 add_to_rsp);
/* The same: RAX, an instruction pointer, becomes the key of c->code.targets.  Flags are lost. */
void t_make_key(struct translation *t);
/* The target's entry for RAX into RCX (c->code.targets); jumps to *miss where there is none.  Then: goes there. */
void t_find_target(struct translation *t, u8 *miss[2]);
void t_enter_target(struct translation *t);
/* Goes on at this offset from the page's start. */
void t_goto(struct translation *t, s32 target);
void t_leave(struct translation *t); /* out: RIP is set, flags are in memory */
void t_emit_deep(struct translation *t); /* behind the body */

/* ---- registers ---- */
/* LEA as wide as addresses are: 32-bit ones go round at 4 GiB, and leave the upper half of a home 0. */
static inline void t_lea(struct translation *t, unsigned dst, struct em_mem m) {
  em_mem(&t->e, !t->m32, 0x8d, dst, m);
}
/* An address, or what the stack holds, to and from memory. */
static inline void t_load_word(struct translation *t, unsigned dst, struct em_mem m) {
  em_mem(&t->e, !t->m32, 0x8b, dst, m);
}
static inline void t_store_word(struct translation *t, struct em_mem m, unsigned src) {
  em_mem(&t->e, !t->m32, 0x89, src, m);
}
/* The instruction's operand and the stack are as wide as the mode has them. */
static inline bool t_is_word(const struct translation *t) {
  if (t->m16) return (t->z->operand_width == 16 || t->z->operand_width == 32) && t->z->stack_width == 16;
  return t->z->operand_width == 8 * t->word && t->z->stack_width == 8 * t->word;
}
/* Bytes that the instruction at hand pushes or pops; 16-bit code has both sizes. */
static inline s32 t_slot_size(const struct translation *t) {
  return t->m16 ? t->z->operand_width / 8 : (s32)t->word;
}
static inline void t_load_slot(struct translation *t, unsigned dst, struct em_mem m) {
  if (t_slot_size(t) == 2)
    em_mem(&t->e, 0, 0x0fb7, dst, m);
  else
    t_load_word(t, dst, m);
}
static inline void t_store_slot(struct translation *t, struct em_mem m, unsigned src) {
  if (t_slot_size(t) == 2) em8(&t->e, 0x66);
  t_store_word(t, m, src);
}
static inline bool t_mapped(unsigned guest) {
  return T_HOME(guest) != H_NONE;
}
static inline void t_move_rsp(struct translation *t, s32 by) {
  if (t->m16) em8(&t->e, 0x66); /* SP alone */
  t_lea(t, T_HOME(RSP), EM_AT(T_HOME(RSP), by));
}
/* Code that looks at segments: the instruction pointer so many bytes into the page. */
static inline u32 t_ip(const struct translation *t, s32 offset) {
  return t->page + (u32)offset;
}
static inline struct em_mem t_slot(unsigned guest) {
  return EM_GS(offsetof(struct x86_vcpu, regs) + 8 * guest);
}
/* The value of a guest register in a host register: its own, or `scratch`. */
static inline unsigned t_read(struct translation *t, unsigned guest, unsigned scratch) {
  if (t_mapped(guest)) return T_HOME(guest);
  em_load(&t->e, scratch, t_slot(guest));
  return scratch;
}
static inline void t_write(struct translation *t, unsigned guest, unsigned host) {
  if (t_mapped(guest))
    em_mov(&t->e, T_HOME(guest), host);
  else
    em_store(&t->e, t_slot(guest), host);
}

/* ---- entry.c ---- */
int x86_code_enter(struct x86_vcpu *c, const void *code);
void x86_code_stray(void), x86_code_leave(void), x86_code_interpret(void), x86_code_interpret_at(void), x86_code_load_vectors(void), x86_code_load_x87(void);

/* ---- syscall.c ---- */
void x86_code_syscall(void), x86_code_sysret(void);

/* ---- a translation ---- */

/* Guest registers that are not at home when an instruction touches memory. */
enum {
  MOVED_RAX = 1, MOVED_RCX = 2, /* in the host's of that name */
  MOVED_COUNT = 4,              /* the host's RCX is to be added to the guest's */
  MOVED_RSI = 8, MOVED_RDI = 16 /* are host addresses: c->code.from and c->code.to are to be subtracted */
};
struct x86_code {
  struct x86_block *block;
  gpa_t gpa;        /* of the block, which may be gone when this code is dead */
  u8 *host, *saved; /* where to enter by where the flags are */
  u8 *behind_gate;  /* as `saved`, for whoever has looked at the gate */
  u8 *end;
  u8 *gate;   /* displacement of the jump at the gate of `saved`, taken when it is closed */
  u64 *epoch; /* the word at the gate: minus the epoch */
  u8 right;
  bool segmented;
  u32 mode;        /* of the block */
  u32 page, limit; /* as struct translation has them ... */
  struct x86_code *older; /* ... and the block's for others */
  u8 *start;
  /* Each instruction's code, in each copy of the block: offset from the start, and where a fault finds the flags (t_flags_end()).  The last: the slow paths. */
  unsigned n_places;
  struct x86_code_place {
    u16 at;
    u8 flags, insn;
    s16 rsp; /* to be added to it */
    u8 moved; /* MOVED_* */
  } place[];
};
struct jit_arena *x86_code_arena(struct x86_vcpu *c);
/* Where segments are looked at: the instruction pointer where the page of the block at RIP starts; the last one that translated code may have. */
static inline u32 x86_code_page(const struct x86_vcpu *c, const struct x86_block *b) { return (u32)(c->rip - (b->gpa & (PAGE_SIZE - 1))); }
static inline u32 x86_code_limit(const struct x86_vcpu *c) {
  return (c->mode & X86_MODE_SIZE) == X86_MODE_16 ? MIN(c->seg[SEG_CS].limit, 0xffffu) : c->seg[SEG_CS].limit;
}
/* Translates into the arena, with *t to work in; NULL: no room there or for the record of it. */
struct x86_code *x86_translate_block(struct translation *t, struct x86_vcpu *c, struct jit_arena *a, struct region *records, struct x86_block *b, unsigned right,
                                     bool segmented);

#endif
