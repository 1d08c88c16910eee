/* The instruction differential: one instruction from one random state, on the host CPU and in the engine; states compared.
 *
 *   gen.c      makes cases: an encoding, registers, operands that reach the arena
 *   host.c     runs a case natively (stub.S enters and leaves it; exceptions come as signals)
 *   engine.c   runs it in a vCPU of the engine, whose guest memory shows the same arena at the same addresses
 *   compare.c  compares and reports; holds the list of flags that the manual leaves undefined
 *   main.c     arguments, progress, summary
 *   seq.c      sequences of instructions instead of single ones; seq_gen.c makes them
 *   ext.c      extended state (x87, SSE, AVX, ...): comparison; ext_values.c its random values
 */
#ifndef TESTS_DIFF_DIFF_H
#define TESTS_DIFF_DIFF_H

#include <Zydis/Zydis.h>
#include "base/types.h"

#define DIFF_XSAVE_SIZE 4096

/* What an instruction starts from and leaves.  stub.S knows the offsets of gpr, rflags and xsave. */
struct diff_state {
  u8 xsave[DIFF_XSAVE_SIZE] __attribute__((aligned(64))); /* standard XSAVE layout; used where diff_case.ext */
  u64 gpr[16];
  u64 rflags;
  u64 ip;     /* after: of the next instruction, or of the faulting one */
  s32 vector; /* -1: none */
  u32 error;
  u64 cr2;
};

struct diff_case {
  u8 code[16];
  unsigned len;
  unsigned fixed; /* bytes up to ModRM and SIB */
  unsigned mode;  /* 16 (protected mode, segments of 64 KiB), 32 (compatibility mode, flat) or 64 */
  bool branch;    /* may leave for an address of its own */
  bool ext;       /* extended state takes part */
  u64 operand; /* linear address of the memory operand; 0: none, or left to chance */
  u64 at;         /* where the code lies, natively and in the engine */
  u64 end;        /* of a sequence: where its way out lies */
  ZydisDecodedInstruction insn;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  struct diff_state in;
};

/* ---- memory, at the same linear addresses in both ---- */
#define CODE_BASE    0x10000000ull
#define CODE_SIZE    0x10000ull
#define CODE_LIMIT16 (CODE_SIZE - PAGE_SIZE - 1) /* of the 16-bit segment: without the last page, which holds the way out */
#define SLOT_SIZE    128u                        /* one case's code, int3 around it */
#define SLOT_OFFSET  48u                         /* of the instruction in its slot */
#define ARENA_BASE   0x20000000ull
#define ARENA_PAGES  8u
#define ARENA_SIZE   (ARENA_PAGES * PAGE_SIZE)
enum arena_page { PAGE_GONE, PAGE_RW, PAGE_RO };
extern const u8 arena_map[ARENA_PAGES];
#define DIFF_GS_BASE 0x40ull
#define DIFF_GS      0x17 /* in 32-bit mode: a selector with that base */
/* 16-bit mode: the code area is one segment, the arena is the data and stack segment.  IRET to a 16-bit stack leaves bits 31:16
 * of ESP as they were. */
#define ENTRY_PAGE 0x5a3d0000ull
extern bool diff_based; /* the same in 32-bit mode */
static inline u64 diff_code_base(unsigned mode) {
  return mode == 16 || diff_based ? CODE_BASE : 0;
}
static inline u64 diff_data_base(unsigned mode) {
  return mode == 16 || diff_based ? ARENA_BASE : 0;
}
static inline unsigned diff_gprs(unsigned mode) {
  return mode == 64 ? 16 : 8;
}

extern u8 *engine_arena; /* the engine's copy */
extern bool engine_v86;  /* 16-bit code runs in virtual-8086 mode, where the host cannot follow, ... */
extern bool engine_real; /* ... or (engine_v86 is set, too) in real mode */

/* ---- random numbers (main.c): xoshiro256** ---- */
u64 rnd(void);
void rnd_seed(u64 s);
static inline unsigned rnd_below(unsigned n) {
  return (unsigned)((rnd() >> 32) * n >> 32);
}
static inline bool rnd_chance(unsigned percent) {
  return rnd_below(100) < percent;
}

/* ---- gen.c ---- */
/* Collects the encodings to test; family NULL: all.  Returns how many mnemonics there are. */
unsigned gen_init(const char *family, const char *mnemonic, unsigned mode);
void gen_case(struct diff_case *k);
/* Writes to both arenas, where all of the range is writable. */
void gen_poke(u64 at, const void *data, unsigned size);

/* Instructions of sequences: which registers they should use. */
#define GEN_NO_INDEX 16
struct gen_shape {
  u16 pool;    /* register numbers of operands, also of vector registers */
  u16 bases;   /* registers that point into the arena */
  u8 index;    /* a register that holds a small number, or GEN_NO_INDEX */
  unsigned ext; /* percentage on extended state */
};
bool gen_instruction(struct diff_case *k, const struct gen_shape *s); /* an encoding only; never a branch.  false: try again */
bool gen_decode(struct diff_case *k);                                  /* after a change of the bytes */
const ZydisDecodedOperand *gen_memory_operand(const struct diff_case *k);
bool gen_is_branch(const ZydisDecodedInstruction *insn);
u64 gen_value(void);
u64 gen_pointer(unsigned align); /* into the arena, as a register holds it */
u64 gen_address(u64 offset);     /* the same, of an offset in the arena */

/* ---- host.c ---- */
u8 *host_init(unsigned mode); /* the code area, for writing */
void host_fill_arena(void);   /* random contents, on both sides */
void host_run(const struct diff_case *k, struct diff_state *out);
u64 host_next_slot(void); /* where the next case's code will lie */
/* Sequences: code is placed once, with the way out behind it, and run by everyone.  ip after the way out: DIFF_END. */
#define DIFF_END     0x5a5a0e2dd0e0a5a5ull
#define DIFF_ENDLESS 1000 /* vector: stopped by the watch */
void host_place(u64 at, const u8 *bytes, unsigned len);
void host_run_placed(const struct diff_case *k, struct diff_state *out);
u64 host_exit_address(void);
extern void (*host_on_crash)(void); /* a fault of the program itself; NULL: it ends */
bool host_is_int3(u64 ip); /* in the code area */
void host_start_watch(void);
void host_watch(void (*stop)(void)); /* what runs now: stop() makes it end, for the host NULL */

/* ---- engine.c ---- */
void engine_init(u8 *code); /* the code area's bytes: readable in both */
void engine_set_mode(unsigned mode);
/* The flags the decoded instruction claims to read and write; false: it does not decode. */
bool engine_decodes(const u8 *code); /* the engine claims the instruction */
bool engine_flags(const struct diff_case *k, u8 *read, u8 *written);
void engine_run(const struct diff_case *k, struct diff_state *out);
/* Placed code by way of the block loop: in a VM that interprets, and in one that translates; there it is interpreted until its blocks are warm. */
enum engine_kind { ENGINE_INTERPRETER, ENGINE_TRANSLATOR, ENGINE_KINDS };
#define DIFF_HOLE 3000 /* vector: the host page was not there */
void engine_start_sequences(u8 *code, unsigned mode);
void engine_run_placed(enum engine_kind kind, const struct diff_case *k, struct diff_state *out);
/* The same while the client has taken a page of the arena away; where that is found (true), to the end when it is back. */
bool engine_run_with_hole(enum engine_kind kind, const struct diff_case *k, unsigned hole, struct diff_state *stopped, struct diff_state *out);
bool engine_same_segments(void); /* after both have run */
void engine_cool(u32 pages); /* the translator's TLB has nothing of these pages of the arena; what a block has kept of pages leads nowhere */
void engine_warm(u64 at, unsigned len);           /* the blocks of the code that just ran will be translated */
unsigned engine_translated(u64 at, unsigned len); /* how many of them are */
void engine_forget(void);                         /* all blocks: pages would collect those of earlier cases */
void engine_reset(void);                          /* after a crash */

/* ---- encodings.c ---- */
u64 check_encodings(void); /* number of encodings refused by the decoder and run by the host */

/* ---- flags.c ---- */
bool check_flags(struct diff_case *k); /* false: the decoder's flag sets are wrong for this case */

/* ---- compare.c ---- */
/* true: equal (as far as defined).  Prints a report of the first few differences per mnemonic. */
bool compare(const struct diff_case *k, struct diff_state *host, struct diff_state *engine);
void print_undefined(void);
extern const char *diff_side[2]; /* names in reports */
/* The same for a sequence, k->insn being the instruction that faulted; host memory against the engine's as they are now. */
bool compare_placed(const struct diff_case *k, struct diff_state *host, struct diff_state *engine);
bool compare_engines(const struct diff_case *k, struct diff_state *a, struct diff_state *b); /* without memory */
void report_placed(const struct diff_case *k, const struct diff_state *host, const struct diff_state *engine);

/* ---- ext.c ---- */
struct x86_vcpu;
/* The family of an instruction on extended state ("x87", "avx512", ...); NULL for the others and for those that are not tested.
 */
const char *ext_family(const ZydisDecodedInstruction *insn);
void ext_load(struct x86_vcpu *c, const struct diff_state *s); /* into the engine */
void ext_save(struct x86_vcpu *c, struct diff_state *s);
bool ext_equal(const struct diff_case *k, struct diff_state *host, struct diff_state *engine); /* brings both to one form */
void ext_report(const struct diff_case *k, const struct diff_state *host, const struct diff_state *engine);

/* ---- seq_gen.c ---- */
#define SEQ_MAX  64u  /* instructions, with those of the loop around them */
#define SEQ_SIZE 1024u /* bytes, with the way out */

/* Displacements and addresses of other instructions in the sequence. */
enum seq_fix { FIX_NONE, FIX_RELATIVE, FIX_ABSOLUTE, FIX_DATA };
struct seq_insn {
  u8 code[16];
  u8 len, fix, fix_at, fix_size; /* where the displacement or address lies */
  u8 target;                     /* index of an instruction; seq.n: the way out */
  u64 data;                      /* FIX_DATA: linear address that RIP leads to */
};

struct sequence {
  struct diff_case k; /* state and mode; insn, ops: of the instruction that compare.c is to judge by */
  struct seq_insn insn[SEQ_MAX];
  unsigned n;
  u8 bytes[SEQ_SIZE]; /* as they lie in memory, without the way out */
  unsigned len;
  u16 offset[SEQ_MAX + 1];
  bool ext; /* extended state takes part */
  u8 hole;  /* a page without memory in a further run of both engines; 0: none */
  u32 cold; /* pages of the arena, a byte for each trial */
};
unsigned gen_common(bool ext);       /* a mnemonic that compilers like */
void seq_make(struct sequence *s);   /* random; pokes what operands hold into the arena */
void seq_layout(struct sequence *s); /* bytes and offsets */

/* ---- seq.c ---- */
struct seq_options {
  u64 cases, seed;
  unsigned mode;
  const char *replay; /* a case's seed, or NULL */
  const char *code;   /* its code, where it is not the generated one */
};
u64 seq_run(const struct seq_options *o); /* number of differences */

/* ---- ext_values.c ---- */
void ext_fill(u8 *p, unsigned size); /* elements of one random format */
/* Fills in.xsave and what an operand in memory holds; mem: the operand or NULL, at: its linear address where known. */
void ext_randomise(struct diff_case *k, const ZydisDecodedOperand *mem, u64 at);

#endif
